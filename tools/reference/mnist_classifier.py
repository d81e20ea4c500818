"""Trains an MNIST classifier, and counts how many generated digits it reads as their label.

Train (a few minutes on one core; deterministic for a fixed --seed and torch version; the weights are cached):
    python tools/reference/mnist_classifier.py --weights runs/classifier.pt

Score samples [N,1,28,28] f32, given as `.npy`, or as `.safetensors` with the tensor `sample`:
    python tools/reference/mnist_classifier.py --weights runs/classifier.pt --score runs/samples.safetensors --range -1,1
The labels come from --labels (a `.npy`, or a `.safetensors` with the I64 tensor `labels`), or from --labels-per N (digits
0 to 9 in order, N of each), or else from the tensor `labels` of the samples' own file.

The samples are clamped to --range and mapped to [0, 1] first. The last line printed is one JSON document.
Exit status: 0 done, 1 the accuracy is below --require (training: test accuracy; scoring: share read as their label).
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]


def read_idx(folder: Path, stem: str) -> np.ndarray:
    """Reads one IDX file of unsigned bytes, plain or gzip."""
    for path, opener in ((folder / f"{stem}.gz", gzip.open), (folder / stem, open)):
        if path.exists():
            with opener(path, "rb") as file:
                data = file.read()
            if data[:3] != b"\x00\x00\x08":
                raise SystemExit(f"{path}: not an IDX file of unsigned bytes (starts with {data[:4].hex()})")
            shape = np.frombuffer(data, ">u4", data[3], 4)
            return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)
    raise SystemExit(f"{folder}: neither {stem}.gz nor {stem}; give the folder of the MNIST files with --data")


def load(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N,1,28,28] f32 in [0, 1] and labels [N] of `train` or `t10k`."""
    images = torch.from_numpy(read_idx(folder, f"{part}-images-idx3-ubyte").copy()).float()[:, None] / 255
    labels = torch.from_numpy(read_idx(folder, f"{part}-labels-idx1-ubyte").copy()).long()
    if len(images) != len(labels):
        raise SystemExit(f"{folder}: {len(images)} {part} images, but {len(labels)} labels")
    return images, labels


class Classifier(nn.Module):
    """Four convolutions and one linear layer; input [N,1,28,28] in [0, 1], output ten logits."""

    def __init__(self) -> None:
        super().__init__()

        def conv(i: int, o: int, size: int) -> list[nn.Module]:
            return [nn.Conv2d(i, o, size, padding=size // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

        self.layers = nn.Sequential(
            *conv(1, 24, 5), nn.MaxPool2d(2),
            *conv(24, 48, 3), *conv(48, 48, 3), nn.MaxPool2d(2),
            *conv(48, 96, 3), nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 49, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(2 * x - 1)


def shifted(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Moves every image by up to two pixels in each direction."""
    padded = F.pad(images, (2, 2, 2, 2))
    corner = torch.randint(0, 5, (2, len(images)), generator=rng)
    line = torch.arange(28)
    rows = (corner[0][:, None] + line)[:, :, None]
    columns = (corner[1][:, None] + line)[:, None, :]
    return padded[torch.arange(len(images))[:, None, None], 0, rows, columns][:, None]


def logits_of(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(500)])


def train(options: argparse.Namespace) -> tuple[Classifier, float]:
    torch.manual_seed(options.seed)
    rng = torch.Generator().manual_seed(options.seed)
    images, labels = load(options.data, "train")
    test_images, test_labels = load(options.data, "t10k")
    model = Classifier()
    steps = options.epochs * (len(images) // options.batch)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
    start = time.monotonic()
    accuracy = 0.0
    for epoch in range(options.epochs):
        model.train()
        total = 0.0
        batches = torch.randperm(len(images), generator=rng).split(options.batch)
        for rows in batches[: len(images) // options.batch]:
            loss = F.cross_entropy(model(shifted(images[rows], rng)), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        accuracy = float((logits_of(model, test_images).argmax(1) == test_labels).double().mean())
        print(
            f"epoch {epoch + 1}/{options.epochs}: loss {total * options.batch / len(images):.4f},"
            f" test accuracy {accuracy:.4f}, {time.monotonic() - start:.0f} s",
            file=sys.stderr,
        )
    options.weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), options.weights)
    return model, accuracy


def read_samples(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples in [0, 1] and their labels, both checked."""
    own = {}
    if options.score.suffix == ".safetensors":
        from safetensors.torch import load_file

        own = load_file(str(options.score))
        samples = own["sample"].float()
    else:
        samples = torch.from_numpy(np.load(options.score)).float()
    if samples.ndim != 4 or tuple(samples.shape[1:]) != (1, 28, 28):
        raise SystemExit(f"{options.score}: expected [N,1,28,28], found {list(samples.shape)}")
    if not bool(torch.isfinite(samples).all()):
        raise SystemExit(f"{options.score}: holds numbers that are not finite")
    if options.labels is not None and options.labels.suffix == ".safetensors":
        from safetensors.torch import load_file

        labels = load_file(str(options.labels))["labels"].long()
    elif options.labels is not None:
        labels = torch.from_numpy(np.load(options.labels)).long()
    elif options.labels_per is not None:
        labels = torch.arange(10).repeat_interleave(options.labels_per)
    elif "labels" in own:
        labels = own["labels"].long()
    else:
        raise SystemExit("no labels: give --labels FILE or --labels-per N")
    if labels.shape != samples.shape[:1]:
        raise SystemExit(f"{len(samples)} samples, but labels of shape {list(labels.shape)}")
    low, high = options.range
    return ((samples - low) / (high - low)).clamp(0, 1), labels


def score(model: Classifier, options: argparse.Namespace) -> float:
    samples, labels = read_samples(options)
    read = logits_of(model, samples).argmax(1)
    right = read == labels
    per_class = {}
    print("label  samples  read as it  share   mistaken for")
    for label in sorted(set(labels.tolist())):
        mine = labels == label
        count, good = int(mine.sum()), int((right & mine).sum())
        wrong = torch.bincount(read[mine & ~right], minlength=10).tolist()
        others = ", ".join(f"{digit} ({times})" for digit, times in enumerate(wrong) if times)
        print(f"{label:5}  {count:7}  {good:10}  {good / count:6.2%}  {others}")
        per_class[str(label)] = {"count": count, "read_as_label": good}
    share = float(right.double().mean())
    print(f"total  {len(labels):7}  {int(right.sum()):10}  {share:6.2%}")
    document = {"count": len(labels), "read_as_label": int(right.sum()), "share": share, "per_class": per_class}
    print(json.dumps(document))
    return share


def bounds(text: str) -> tuple[float, float]:
    low, _, high = text.partition(",")
    try:
        values = float(low), float(high)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH such as -1,1, found {text!r}") from None
    if not values[0] < values[1]:
        raise argparse.ArgumentTypeError(f"the first number of {text!r} is not the smaller one")
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data/assets/mnist", help="folder of the MNIST IDX files")
    parser.add_argument("--weights", type=Path, default=ROOT / "runs/classifier.pt", help="cache of the weights")
    parser.add_argument("--retrain", action="store_true", help="train even if the weights are there")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--score", type=Path, help="samples to read: .npy or .safetensors")
    parser.add_argument("--labels", type=Path, help="their labels: .npy, or .safetensors with `labels`")
    parser.add_argument("--labels-per", type=int, metavar="N", help="the labels are 0 to 9 in order, N of each")
    parser.add_argument("--range", type=bounds, default=(-1.0, 1.0), metavar="LOW,HIGH", help="black,white of the samples")
    parser.add_argument("--require", type=float, default=0.0, help="least accuracy, 0 to 1")
    # A value such as -1,1 looks like an option to argparse: bind it with an equals sign first.
    arguments = sys.argv[1:]
    for at in range(len(arguments) - 1):
        if arguments[at] == "--range":
            arguments[at : at + 2] = [f"--range={arguments[at + 1]}"]
            break
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    if options.retrain or not options.weights.exists():
        model, accuracy = train(options)
    else:
        model, accuracy = Classifier(), None
        model.load_state_dict(torch.load(options.weights, weights_only=True))
    if options.score is not None:
        accuracy = score(model, options)
    else:
        if accuracy is None:
            images, labels = load(options.data, "t10k")
            accuracy = float((logits_of(model, images).argmax(1) == labels).double().mean())
        print(json.dumps({"test_accuracy": accuracy}))
    return 0 if accuracy >= options.require else 1


if __name__ == "__main__":
    sys.exit(main())
