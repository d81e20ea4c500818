"""Writes golden figures of the metrics of images: `eval/tests/golden/metrics.safetensors` and `metrics.json`.

The features are f32 and stored; the figures are computed from them in f64.

  real, drawn        `NAME.real` [N, D] and `NAME.drawn` [M, D]. `tall`: N > D. `wide`: N < D, so that no covariance has full
                     rank. `steep`: standard deviations from 1 down to 1e-4, far from the origin. `dead`: a third of the
                     features are zero throughout, as behind a ReLU.
  logits, labels     `NAME.logits` [N, K] and `NAME.labels` [N]
  fid                of numpy's mean and cov; the trace of the root is the sum of the singular values of the product of
                     both centred matrices, which is exact to rounding however the covariances are conditioned
  fid_sqrtm          the same with scipy.linalg.sqrtm of the product of the covariances, as pytorch-fid has it (null where
                     that is not finite); the script stops if the two differ by more than 1e-4 of the covariances' traces
  mmd2, mmd2_error   the kernel distance from all pairs, and the jackknife over the rows of both
  prdc               precision, recall, density, coverage by the package `prdc` (k = 3, 5)
  score, score_error exp(mean KL), and its standard error of first order
  accuracy           share of logits whose argmax is the label

Usage: python tools/reference/golden_metrics.py [--out eval/tests/golden]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
from prdc import compute_prdc
from safetensors.numpy import save_file
from scipy import linalg, special


def fid(x: np.ndarray, y: np.ndarray) -> dict:
    """The Fréchet distance by singular values, and by the root of a matrix."""
    step = x.mean(0) - y.mean(0)
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    a = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / math.sqrt(len(y) - 1)
    traces = np.trace(s1) + np.trace(s2)
    value = step @ step + traces - 2 * linalg.svdvals(a @ b.T).sum()
    root = linalg.sqrtm(s1 @ s2)
    by_root = float(step @ step + traces - 2 * np.trace(root).real)
    if not math.isfinite(by_root):
        return {"fid": float(value), "fid_sqrtm": None}
    if abs(value - by_root) > 1e-4 * traces:
        raise SystemExit(f"the distance is {value} by singular values, and {by_root} by the root")
    return {"fid": float(value), "fid_sqrtm": by_root}


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def pairs(a: np.ndarray) -> float:
        k = kernel(a, a)
        return (k.sum() - np.trace(k)) / (len(a) * (len(a) - 1))

    return float(pairs(x) + pairs(y) - 2 * kernel(x, y).mean())


def jackknife(x: np.ndarray, y: np.ndarray) -> float:
    """The standard error of mmd2, one row left out after the other."""

    def part(values: list[float]) -> float:
        v = np.array(values)
        return (len(v) - 1) / len(v) * ((v - v.mean()) ** 2).sum()

    of_x = part([mmd2(np.delete(x, i, 0), y) for i in range(len(x))])
    of_y = part([mmd2(x, np.delete(y, i, 0)) for i in range(len(y))])
    return math.sqrt(of_x + of_y)


def neighbours(x: np.ndarray, y: np.ndarray) -> list[dict]:
    found = []
    for k in (3, 5):
        with contextlib.redirect_stdout(io.StringIO()):
            values = compute_prdc(x, y, k)
        found.append({"k": k, **{name: float(value) for name, value in values.items()}})
    return found


def score(logits: np.ndarray) -> dict:
    logs = special.log_softmax(logits, axis=1)
    p = np.exp(logs)
    divergence = special.rel_entr(p, p.mean(0)).sum(1)
    value = math.exp(divergence.mean())
    return {"score": value, "score_error": value * divergence.std(ddof=1) / math.sqrt(len(logits))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("eval/tests/golden"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    random = np.random.default_rng(20)
    mixing = random.normal(size=(40, 40)) / 5
    scales = np.geomspace(1, 1e-4, 24)
    rotation = linalg.qr(random.normal(size=(24, 24)))[0]
    sets = {
        "tall": (random.normal(size=(300, 16)), random.normal(size=(220, 16)) * 1.15 + 0.2),
        "wide": (random.normal(size=(24, 40)) @ mixing, random.normal(size=(30, 40)) @ mixing * 0.8),
        "steep": (
            random.normal(size=(120, 24)) * scales @ rotation + 3,
            random.normal(size=(100, 24)) * scales[::-1] @ rotation + 3,
        ),
        "dead": (
            np.maximum(random.normal(size=(150, 30)) * (np.arange(30) % 3 > 0), 0),
            np.maximum(random.normal(size=(150, 30)) * 1.4 * (np.arange(30) % 3 > 0) - 0.1, 0),
        ),
    }
    tensors, cases = {}, []
    for name, (x, y) in sets.items():
        x, y = x.astype(np.float32), y.astype(np.float32)
        tensors |= {f"{name}.real": x, f"{name}.drawn": y}
        x, y = x.astype(np.float64), y.astype(np.float64)
        figures = {"mmd2": mmd2(x, y), "mmd2_error": jackknife(x, y), "prdc": neighbours(x, y)}
        cases.append({"name": name, **fid(x, y), **figures})

    classified = []
    for name, scale in (("sharp", 9), ("soft", 1)):
        logits = (random.normal(size=(150, 10)) * scale).astype(np.float32)
        labels = np.where(random.random(150) < 0.7, logits.argmax(1), random.integers(0, 10, 150))
        tensors |= {f"{name}.logits": logits, f"{name}.labels": labels}
        accuracy = float((logits.argmax(1) == labels).mean())
        classified.append({"name": name, **score(logits.astype(np.float64)), "accuracy": accuracy})

    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, out / "metrics.safetensors")
    lines = [",\n".join("  " + json.dumps(row) for row in rows) for rows in (cases, classified)]
    text = f'{{\n"features": [\n{lines[0]}\n],\n"logits": [\n{lines[1]}\n]\n}}\n'
    json.loads(text)
    (out / "metrics.json").write_text(text)


if __name__ == "__main__":
    main()
