"""Trains the textbook network in PyTorch for a number of minutes, then draws digits: what the time is worth.

The recipe is the usual one for this network: eps prediction on images in [0, 1], T = 1000, betas from 1e-4 to 0.02 in equal
steps, t uniform in 1..T, mean squared error, Adam with learning rate 1e-3, batches of 64, and one label in ten dropped. Then
DDIM (eta = 0, trailing steps) draws as many images of each label, and they are written as .safetensors: `sample` [N,1,28,28] in
[-1, 1] and `labels` [N]. Minutes count the training alone: reading the data before it and drawing after it are not in them. With
`--network` further samples, with another guidance say, need no further training.

Usage: python bench/peers/time_to_quality.py --minutes 20 --threads 2 --out samples.safetensors
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from networks import BOOK, ROOT, build

#: Steps of the process.
TRAIN_STEPS = 1000
BATCH = 64
LEARNING_RATE = 1e-3
LABEL_DROPOUT = 0.1
#: The share of the past in the loss that is printed.
MEMORY = 0.99
#: Seconds between two lines.
INTERVAL = 30.0
#: Images that are drawn at once.
DRAWN_AT_ONCE = 100


def read_idx(folder: Path, name: str) -> torch.Tensor:
    """An IDX file of bytes, plain or with the suffix .gz."""
    path = folder / name
    zipped = folder / f"{name}.gz"
    data = gzip.decompress(zipped.read_bytes()) if zipped.is_file() else path.read_bytes()
    zeros, kind, rank = struct.unpack_from(">HBB", data)
    if (zeros, kind) != (0, 8):
        raise SystemExit(f"{path} is no IDX file of bytes")
    shape = struct.unpack_from(f">{rank}I", data, 4)
    return torch.frombuffer(bytearray(data[4 + 4 * rank :]), dtype=torch.uint8).reshape(shape)


def alphas_cumprod() -> torch.Tensor:
    """The table of length T + 1 in f64; entry 0 is 1."""
    betas = torch.linspace(1e-4, 0.02, TRAIN_STEPS, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)])


def train(network: torch.nn.Module, call, images: torch.Tensor, labels: torch.Tensor, options) -> dict:
    """Trains in place until the minutes are over; what came of it."""
    layout = torch.contiguous_format if options.contiguous else torch.channels_last
    table = alphas_cumprod()
    signal, noise = table.sqrt().float(), (1 - table).sqrt().float()
    # The fused optimiser is the fastest that PyTorch has on a CPU.
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    rng = torch.Generator().manual_seed(options.seed)
    network.train()
    total = weight = 0.0
    steps, order = 0, torch.empty(0, dtype=torch.long)
    start = said = time.perf_counter()
    while (now := time.perf_counter()) - start < 60 * options.minutes:
        if len(order) < BATCH:
            order = torch.randperm(len(images), generator=rng)
        batch, order = order[:BATCH], order[BATCH:]
        x0 = (images[batch].float() / 255)[:, None].contiguous(memory_format=layout)
        t = torch.randint(1, TRAIN_STEPS + 1, (BATCH,), generator=rng)
        dropped = torch.rand(BATCH, generator=rng) < LABEL_DROPOUT
        y = labels[batch].masked_fill(dropped, -1)
        eps = torch.randn(x0.shape, generator=rng).contiguous(memory_format=layout)
        x_t = signal[t][:, None, None, None] * x0 + noise[t][:, None, None, None] * eps
        optimiser.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(call(x_t, t, y), eps)
        loss.backward()
        optimiser.step()
        steps += 1
        total, weight = MEMORY * total + float(loss.detach()), MEMORY * weight + 1
        if now - said > INTERVAL:
            said = now
            speed = steps * BATCH / (now - start)
            print(f"{(now - start) / 60:.1f} min, step {steps}: loss {total / weight:.4f}, {speed:.0f} images/s", file=sys.stderr)
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 2), "steps": steps, "images": steps * BATCH, "images_per_second": round(steps * BATCH / seconds, 1),
        "loss": round(total / max(weight, 1e-9), 5),
    }


@torch.no_grad()
def draw(network: torch.nn.Module, labels: torch.Tensor, options) -> torch.Tensor:
    """DDIM with eta = 0 over trailing steps, images in [0, 1]."""
    network.eval()
    table = alphas_cumprod()
    times = [round(TRAIN_STEPS * (options.steps - k) / options.steps) for k in range(options.steps)] + [0]
    rng = torch.Generator().manual_seed(options.seed + 1)
    drawn = []
    for y in labels.split(DRAWN_AT_ONCE):
        x = torch.randn((len(y), 1, 28, 28), generator=rng).double()
        for t, s in zip(times, times[1:]):
            input, number = x.float(), torch.full((len(y),), t)
            eps = network(input, number, y).double()
            if options.guidance != 1:
                none = network(input, number, torch.full_like(y, -1)).double()
                eps = none + options.guidance * (eps - none)
            x0 = (x - (1 - table[t]).sqrt() * eps) / table[t].sqrt()
            x = table[s].sqrt() * x0 + (1 - table[s]).sqrt() * eps
        drawn.append(x.float())
    return torch.cat(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data/assets/mnist", help="folder of MNIST's IDX files [bundled]")
    parser.add_argument("--minutes", type=float, default=20, help="of training [20]")
    parser.add_argument("--threads", type=int, default=2, help="[2]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--per-label", type=int, default=100, help="images of each label [100]")
    parser.add_argument("--steps", type=int, default=50, help="of DDIM [50]")
    parser.add_argument("--guidance", type=float, default=1.0, help="scale; 1: the conditional model alone [1]")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile, whose start counts as training")
    parser.add_argument("--contiguous", action="store_true", help="contiguous tensors instead of channels-last ones")
    parser.add_argument(
        "--network", type=Path, help=".safetensors that the trained network is written to; where it exists, it is read instead of training",
    )
    parser.add_argument("--out", type=Path, required=True, help=".safetensors to be written")
    options = parser.parse_args()
    if not 1 <= options.steps <= TRAIN_STEPS:
        parser.error(f"--steps should be from 1 to {TRAIN_STEPS}")
    if not options.out.resolve().parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.resolve().parent}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    images = read_idx(options.data, "train-images-idx3-ubyte")
    labels = read_idx(options.data, "train-labels-idx1-ubyte").long()
    layout = torch.contiguous_format if options.contiguous else torch.channels_last
    _, network = build(BOOK)
    network.to(memory_format=layout)
    if options.network and options.network.exists():
        network.load_state_dict(load_file(options.network))
        report = {}
    else:
        report = train(network, torch.compile(network) if options.compile else network, images, labels, options)
        if options.network:
            save_file({key: value.contiguous() for key, value in network.state_dict().items()}, options.network)

    wanted = torch.arange(BOOK["num_classes"]).repeat_interleave(options.per_label)
    start = time.perf_counter()
    sample = draw(network, wanted, options)
    report["drawing_seconds"] = round(time.perf_counter() - start, 2)
    finite = bool(torch.isfinite(sample).all())
    save_file({"sample": (2 * sample - 1).contiguous(), "labels": wanted}, options.out)
    report |= {"samples": len(sample), "finite": finite, "torch": torch.__version__, "threads": options.threads}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
