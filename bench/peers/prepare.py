"""Writes what every peer of the benchmark reads: weights, inputs and the outputs that are expected of them.

Expected outputs and losses are PyTorch's in f64, from f32 weights and inputs. All tensors of a network are random, those that
start as zeros or ones as well (running statistics, biases, the last layers of residual branches), so that a part that a
peer leaves out shows; the weights of `digits` are those of the bundled model. What is up to date is left alone.

Usage: python bench/peers/prepare.py --folder FOLDER NAME=BATCH[,BATCH...] ...
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import networks
from networks import LEARNING_RATE, ROOT

#: Training steps whose losses the peers have to agree with.
STEPS = 3


def randomise(model: torch.nn.Module, rng: torch.Generator) -> None:
    """Random values for every tensor of the state dict that keep activations near unit variance."""
    norms = (torch.nn.GroupNorm, torch.nn.BatchNorm2d)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if not tensor.is_floating_point():
                continue
            z = torch.randn(tensor.shape, generator=rng)
            if isinstance(module, norms):
                value = {"weight": 1 + 0.2 * z, "bias": 0.2 * z, "running_mean": 0.2 * z}.get(name)
                if value is None:
                    value = torch.rand(tensor.shape, generator=rng) + 0.5
            elif isinstance(module, torch.nn.Embedding):
                value = z
            elif name == "bias":
                value = 0.1 * z
            else:
                value = z * math.sqrt(1.5 / tensor[0].numel())
            tensor.data.copy_(value)


def contiguous(state: dict) -> dict:
    return {key: value.detach().contiguous().clone() for key, value in state.items()}


def write_model(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    config = networks.config(name)
    _, network = networks.build(config)
    if name == "digits":
        stored = load_file(ROOT / "cli/assets/digits/diffusion_pytorch_model.safetensors")
        network.load_state_dict({key: value.float() for key, value in stored.items()})
    else:
        randomise(network, torch.Generator().manual_seed(1))
    folder.mkdir(parents=True, exist_ok=True)
    if name in networks.HALF:
        network.half()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(contiguous(network.state_dict()), folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def inputs(config: dict, batch: int) -> tuple[dict, torch.Tensor]:
    """The arguments of a call, and the target of a training step."""
    rng = torch.Generator().manual_seed(1000 + batch)
    kind = networks.class_name(config)
    if kind == "CLIPTextModel":
        ids = torch.randint(0, config["vocab_size"] - 2, (batch, networks.TOKENS), generator=rng)
        return {"input_ids": ids}, torch.empty(0)
    if kind == "AutoencoderKL":
        side = config["sample_size"] // 2 ** (len(config["block_out_channels"]) - 1)
        return {"sample": torch.randn((batch, config["latent_channels"], side, side), generator=rng)}, torch.empty(0)
    book = config["_class_name"] == "UNetCond"
    side = config["image_size"] if book else config["sample_size"]
    # Four channels are the default of networks that read texts.
    shape = (batch, config.get("in_channels", 4), side, side)
    first = 1 if book else 0
    tensors = {
        "sample": torch.randn(shape, generator=rng),
        "timestep": torch.randint(first, first + 1000, (batch,), generator=rng).float(),
    }
    target = torch.randn(shape, generator=rng)
    classes = config["num_classes"] if book else config.get("num_class_embeds")
    if config["_class_name"] == "UNet2DConditionModel":
        tensors["encoder_hidden_states"] = torch.randn((batch, networks.TOKENS, config["cross_attention_dim"]), generator=rng)
    if classes:
        labels = torch.randint(0, classes, (batch,), generator=rng)
        if book:
            # Every eighth sample has no condition.
            labels[7::8] = -1
        tensors["class_labels"] = labels
    return tensors, target


def losses(model: torch.nn.Module, arguments: list, target: torch.Tensor) -> list[float]:
    """The losses of the first training steps, each from before its update."""
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    found = []
    for _ in range(STEPS):
        optimiser.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(model(*arguments), target)
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    return found


def write_batch(folder: Path, batch: int) -> None:
    model = networks.load(folder / "model")
    config = json.loads((folder / "model/config.json").read_text())
    tensors, target = inputs(config, batch)
    single = model.eval()
    double = copy.deepcopy(model).double().eval()
    # Times are told in f32, which is what the sinusoids are computed in.
    whole = ("timestep", "class_labels", "input_ids")
    arguments = [tensor if name in whole else tensor.double() for name, tensor in tensors.items()]
    with torch.no_grad():
        output = double(*arguments)
        difference = single(*tensors.values()).double() - output
    expected = {"output": output.float().contiguous(), "target": target, "losses": torch.empty(0, dtype=torch.float64)}
    if folder.name not in networks.HALF:
        expected["losses"] = torch.tensor(losses(double, arguments, target.double()), dtype=torch.float64)
    del double
    save_file(tensors, folder / f"input-{batch}.safetensors")
    save_file(expected, folder / f"expected-{batch}.safetensors")
    print(
        f"{folder.name}, batch {batch}: f32 differs from f64 by {difference.norm() / output.norm():.1e};"
        f" losses {', '.join(f'{loss:.6f}' for loss in expected['losses'])}",
        file=sys.stderr,
    )
    export(single, tensors, folder / f"model-{batch}.onnx")


def export(model: torch.nn.Module, tensors: dict, path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, tuple(tensors.values()), path, input_names=list(tensors), output_names=["output"], dynamo=True,
            # A file of more than 2 GB has its weights beside it.
            external_data=path.parent.name in networks.HALF, verbose=False,
        )


def fingerprint(name: str, batches: list[int]) -> str:
    """Changes whenever the files would be others."""
    digest = hashlib.sha256(f"{torch.__version__} {name} {batches}".encode())
    here = Path(__file__).resolve().parent
    for path in (here / "prepare.py", here / "networks.py", ROOT / "tools/reference/book_unet.py"):
        digest.update(path.read_bytes())
    if name == "digits":
        digest.update((ROOT / "cli/assets/digits/diffusion_pytorch_model.safetensors").read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("jobs", nargs="+", metavar="NAME=BATCH[,BATCH...]")
    options = parser.parse_args()
    for job in options.jobs:
        name, _, text = job.partition("=")
        batches = sorted({int(batch) for batch in text.split(",")})
        folder = options.folder / name
        stamp, wanted = folder / "stamp", fingerprint(name, batches)
        if stamp.is_file() and stamp.read_text() == wanted:
            continue
        stamp.unlink(missing_ok=True)
        write_model(name, folder / "model")
        for batch in batches:
            write_batch(folder, batch)
        stamp.write_text(wanted)


if __name__ == "__main__":
    main()
