"""Times PyTorch eager on the networks that `tweedie bench` times.

Forward: evaluation mode, no gradients. Training step: forward, mean squared error, backward, Adam. Each combination of
network, task and memory format runs in a process of its own, so that its peak memory is its own: `peak_rss_mb` is the
highest resident memory, `idle_rss_mb` that of the process after its imports, `peak_over_idle_mb` the difference.
`images_per_second` counts all timed steps together; `best_images_per_second` is the fastest single step.
Progress goes to stderr, one JSON document to stdout.

Usage: python bench/peers/pytorch_bench.py [--config CONFIG.json] [--batch 64] [--threads 2] [--seconds 10]
CONFIG.json is the config of a UNet2DModel, such as `unet/config.json` of a run's directory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("contiguous", "channels_last")
TASKS = ("forward", "train")


def resident(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"/proc/self/status has no {field}")


def child(job: dict) -> dict:
    """Runs one combination in this process."""
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    if job["model"] == "book":
        sys.path.insert(0, str(ROOT / "tools/reference"))
        from book_unet import UNetCond

        idle = resident("VmRSS")
        model, shape, classes = UNetCond(), (1, 28, 28), 10

        def run(x, t, y):
            return model(x, t, y)
    else:
        from diffusers import UNet2DModel

        idle = resident("VmRSS")
        model = UNet2DModel.from_config(json.loads(Path(job["model"]).read_text()))
        side = model.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        shape, classes = (model.config.in_channels, height, width), model.config.num_class_embeds

        def run(x, t, y):
            return model(x, t, class_labels=y).sample

    layout = torch.channels_last if job["format"] == "channels_last" else torch.contiguous_format
    model = model.to(memory_format=layout)
    batch = job["batch"]
    x = torch.randn((batch, *shape)).contiguous(memory_format=layout)
    t = torch.randint(1, 1000, (batch,)).float()
    y = None if classes is None else torch.randint(0, classes, (batch,))

    if job["task"] == "forward":
        model.eval()

        def step():
            with torch.no_grad():
                run(x, t, y)
    else:
        model.train()
        with torch.no_grad():
            target = torch.randn_like(run(x[:2], t[:2], None if y is None else y[:2]).repeat(batch, 1, 1, 1)[:batch])
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

        def step():
            optimiser.zero_grad(set_to_none=True)
            torch.nn.functional.mse_loss(run(x, t, y), target).backward()
            optimiser.step()

    for _ in range(job["warmup"]):
        step()
    times = []
    while sum(times) < job["seconds"] or len(times) < 2:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    peak = resident("VmHWM")
    return {
        "model": job["name"], "parameters": sum(p.numel() for p in model.parameters()), "task": job["task"],
        "memory_format": job["format"], "steps": len(times),
        "images_per_second": round(batch * len(times) / sum(times), 2),
        "best_images_per_second": round(batch / min(times), 2),
        "idle_rss_mb": round(idle, 1), "peak_rss_mb": round(peak, 1), "peak_over_idle_mb": round(peak - idle, 1),
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, action="append", default=[], help="config.json of a UNet2DModel; repeatable")
    parser.add_argument("--no-book", action="store_true", help="leave the textbook network out")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="timed seconds for each combination")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps for each combination")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return

    models = [] if options.no_book else [("book", "book")]
    models += [(str(path), str(path.resolve())) for path in options.config]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    results = []
    for name, model in models:
        for task in options.tasks:
            for layout in options.formats:
                job = {
                    "name": name, "model": model, "task": task, "format": layout, "batch": options.batch,
                    "threads": options.threads, "seconds": options.seconds, "warmup": options.warmup,
                }
                done = subprocess.run(
                    [sys.executable, __file__, "--child", json.dumps(job)], stdout=subprocess.PIPE, text=True, env=environment
                )
                if done.returncode != 0:
                    raise SystemExit(f"{name}, {task}, {layout}: the measuring process ended with {done.returncode}")
                results.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{name} {task} {layout}: {results[-1]['images_per_second']} images/s", file=sys.stderr)
    from importlib.metadata import version

    print(json.dumps({
        "library": "pytorch eager", "versions": {name: version(name) for name in ("torch", "diffusers")},
        "processor": processor(), "threads": options.threads, "batch": options.batch, "results": results,
    }, indent=2))


if __name__ == "__main__":
    main()
