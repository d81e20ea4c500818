"""Opens a training run's directory in Python diffusers and compares it with the `tweedie` binary.

1. `UNet2DModel` and `DDPMScheduler` load with no missing, unexpected or mis-shaped key and without any warning; the last
   row of a class embedding (the null condition) is zero.
2. One network call on random input, several timesteps and every kind of label: diffusers against `tweedie predict`. The
   null condition is class num_class_embeds - 1 there and -1 here.
3. Whole trajectories of DDPM and DDIM with given noise: diffusers against `tweedie sample --noise`.

Differences are in L2, relative to the diffusers result. Exit status: 0 all at most --tolerance, 1 otherwise.

Usage: python tools/reference/check_run_directory.py RUN_DIR --tweedie target/release/tweedie
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.schedulers import scheduling_ddpm
from safetensors.torch import load_file, save_file


class Collector(logging.Handler):
    """Keeps the warnings and errors that diffusers logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def no_warnings(what: str):
    """Fails if anything inside warns, by the logger or by the warnings module."""
    collector = Collector()
    logger = logging.getLogger("diffusers")
    logger.addHandler(collector)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        logger.removeHandler(collector)
    messages = collector.messages + [str(entry.message) for entry in caught]
    if messages:
        raise SystemExit(f"{what}: {len(messages)} warnings\n  " + "\n  ".join(messages))


def open_directory(folder: Path) -> tuple[UNet2DModel, DDPMScheduler]:
    with no_warnings(f"{folder}/unet"):
        model, info = UNet2DModel.from_pretrained(
            folder, subfolder="unet", output_loading_info=True, low_cpu_mem_usage=False, torch_dtype=torch.float32,
            local_files_only=True, use_safetensors=True,
        )
    faults = {name: found for name, found in info.items() if found}
    if faults:
        raise SystemExit(f"{folder}/unet: the weights do not fit the config: {faults}")
    with no_warnings(f"{folder}/scheduler"):
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    if type(model.class_embedding) is torch.nn.Embedding and bool(model.class_embedding.weight[-1].any()):
        raise SystemExit(f"{folder}/unet: class_embedding.weight: the last row, the null condition, is not zero")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"opened {folder}: {len(model.state_dict())} tensors, {parameters} parameters, no warning")
    return model.eval(), scheduler


def call(options: argparse.Namespace, *arguments: object) -> None:
    command = [str(options.tweedie), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with status {done.returncode}\n{done.stdout}{done.stderr}")


class Report:
    """Prints each difference and remembers whether one was too large."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance, self.good, self.rows = tolerance, True, []

    def compare(self, name: str, reference: torch.Tensor, found: torch.Tensor) -> None:
        if reference.shape != found.shape:
            raise SystemExit(f"{name}: expected shape {list(reference.shape)}, found {list(found.shape)}")
        reference, found = reference.double(), found.double()
        absolute = float((reference - found).abs().max())
        relative = float((reference - found).norm() / reference.norm())
        good = relative <= self.tolerance
        self.good &= good
        self.rows.append({"name": name, "largest_absolute": absolute, "relative_l2": relative})
        print(f"{name}: largest absolute {absolute:.2e}, relative {relative:.2e}{'' if good else '   TOO LARGE'}")


def null_class(model: UNet2DModel) -> int | None:
    count = model.config.num_class_embeds
    return None if count is None else count - 1


def check_predict(options, model, scheduler, report, folder: Path) -> None:
    """Compares single network calls."""
    rng = torch.Generator().manual_seed(options.seed)
    T = scheduler.config.num_train_timesteps
    times = [0.0, 1.0, float(T // 4), T / 2 + 0.25, float(T - 1)]
    null = null_class(model)
    labels = [0] if null is None else sorted({0, null // 2, null - 1, null})
    pairs = [(t, y) for t in times for y in labels]
    t = torch.tensor([pair[0] for pair in pairs], dtype=torch.float32)
    y = torch.tensor([pair[1] for pair in pairs], dtype=torch.int64)
    x = torch.randn((len(pairs), *sample_shape(model)), generator=rng)
    tensors = {"sample": x, "timestep": t}
    if null is not None:
        tensors["class_labels"] = torch.where(y == null, -1, y)
    save_file(tensors, str(folder / "in.safetensors"))
    with torch.no_grad():
        reference = model(x.to(model.dtype), t, class_labels=None if null is None else y).sample
    call(
        options, "predict", "--model", options.directory, "--input", folder / "in.safetensors", "--out",
        folder / "out.safetensors",
    )
    found = load_file(str(folder / "out.safetensors"))["sample"]
    report.compare(f"predict, {len(pairs)} calls", reference, found)
    if null is not None:
        report.compare("predict, null condition alone", reference[y == null], found[y == null])


def sample_shape(model: UNet2DModel) -> tuple[int, int, int]:
    side = model.config.sample_size
    if side is None:
        raise SystemExit("unet/config.json: sample_size is null: the size of the samples is unknown")
    height, width = (side, side) if isinstance(side, int) else side
    return model.config.in_channels, height, width


def trajectory(model, scheduler, labels, guidance, eta, initial, noise) -> torch.Tensor:
    """The last state of a run of diffusers' own step function with the given noise."""
    null = null_class(model)
    x = initial
    for k, t in enumerate(scheduler.timesteps):
        times = t.float().expand(len(x))
        with torch.no_grad():
            output = model(x, times, class_labels=labels).sample
            if guidance != 1.0:
                without = model(x, times, class_labels=torch.full_like(labels, null)).sample
                output = without + guidance * (output - without)
        if isinstance(scheduler, DDIMScheduler):
            z = noise[k] if eta > 0 else None
            x = scheduler.step(output, t, x, eta=eta, variance_noise=z).prev_sample
        else:
            original = scheduling_ddpm.randn_tensor
            scheduling_ddpm.randn_tensor = lambda *a, **b: noise[k]
            try:
                x = scheduler.step(output, t, x).prev_sample
            finally:
                scheduling_ddpm.randn_tensor = original
    return x


def check_samples(options, model, scheduler, report, folder: Path) -> None:
    """Compares whole trajectories."""
    rng = torch.Generator().manual_seed(options.seed + 1)
    null = null_class(model)
    count = 4 if null is None else null
    labels = None if null is None else torch.arange(null)
    shape = (count, *sample_shape(model))
    initial = torch.randn(shape, generator=rng)
    noise = torch.randn((options.steps, *shape), generator=rng)
    save_file({"initial": initial, "steps": noise}, str(folder / "noise.safetensors"))
    initial, noise = initial.to(model.dtype), noise.to(model.dtype)
    config = dict(scheduler.config)
    runs = [("ddpm", None, 1.0), ("ddim", 0.0, 1.0), ("ddim", 0.5, 1.0)]
    if null is not None:
        runs += [("ddpm", None, 2.5), ("ddim", 0.0, 2.5)]
    for sampler, eta, guidance in runs:
        arguments = ["--sampler", sampler, "--steps", options.steps, "--noise", folder / "noise.safetensors"]
        if sampler == "ddim":
            T = config["num_train_timesteps"]
            # Elsewhere diffusers' DDIM steps to a timestep that is not the next of its own list.
            spacing = config["timestep_spacing"] if config["timestep_spacing"] != "linspace" else "trailing"
            if T % options.steps:
                raise SystemExit(f"--steps {options.steps} does not divide the {T} training steps: DDIM cannot be compared")
            with no_warnings("DDIMScheduler.from_config"):
                mine = DDIMScheduler.from_config(scheduler.config, timestep_spacing=spacing)
            arguments += ["--eta", eta, "--spacing", spacing]
        else:
            mine = DDPMScheduler.from_config(scheduler.config)
        mine.set_timesteps(options.steps)
        if labels is None:
            arguments += ["--labels", "none", "--count", count]
        else:
            arguments += ["--labels", ",".join(map(str, labels.tolist())), "--per-label", 1, "--guidance", guidance]
        reference = trajectory(model, mine, labels, guidance, eta, initial, noise)
        call(options, "sample", "--model", options.directory, *arguments, "--out", folder / "sample.safetensors")
        name = f"sample, {sampler}, {options.steps} steps"
        name += f", eta {eta}" if eta is not None else ""
        name += f", guidance {guidance}" if labels is not None else ""
        report.compare(name, reference, load_file(str(folder / "sample.safetensors"))["sample"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="RUN_DIR")
    parser.add_argument("--tweedie", type=Path, required=True, metavar="BINARY")
    parser.add_argument("--steps", type=int, default=10, help="steps of the trajectories")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest relative L2 difference")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--double", action="store_true", help="let diffusers compute in f64: measures tweedie's rounding alone")
    parser.add_argument("--skip-samples", action="store_true", help="compare single predictions only")
    options = parser.parse_args()
    options.tweedie = options.tweedie.resolve()
    torch.set_num_threads(options.threads)

    model, scheduler = open_directory(options.directory)
    if options.double:
        model = model.double()
    report = Report(options.tolerance)
    with tempfile.TemporaryDirectory() as folder:
        check_predict(options, model, scheduler, report, Path(folder))
        if not options.skip_samples:
            check_samples(options, model, scheduler, report, Path(folder))
    print(json.dumps({"tolerance": options.tolerance, "good": report.good, "comparisons": report.rows}))
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
