"""What the scripts of the schedulers' golden files share: the fake network, how numbers are written, and how upstream's
code is run in f64."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import torch


def model(x: torch.Tensor, t: float, learned: bool = False, time_scale: float = 100) -> torch.Tensor:
    """The network of the trajectories: cheap, deterministic, and dependent on the state and on the time."""
    output = 0.3 * x * math.cos(t / time_scale) + 0.1
    return torch.cat([output, 0.5 * torch.cos(x + t)], dim=1) if learned else output


def flat(tensor: torch.Tensor) -> list[float]:
    return tensor.flatten().tolist()


def rounded(values, digits: int) -> list[float]:
    """The numbers with so many significant digits."""
    return [float(f"{value:.{digits}g}") for value in values]


def short(tensor: torch.Tensor) -> list[float]:
    """f32 numbers with the nine digits that identify them."""
    return rounded(flat(tensor), 9)


def config_of(scheduler) -> dict:
    return json.loads(scheduler.to_json_string())


def write_lines(path: Path, document: dict) -> None:
    """JSON with one line for each element of the lists of objects, which keeps differences readable."""
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            body = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in value)
            lines.append(f"{json.dumps(key)}: [\n{body}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    json.loads(path.read_text())


class _Wide:
    """A module whose `float32` is its `float64`."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, "float64" if name == "float32" else name)


@contextlib.contextmanager
def wide(module):
    """Within it, the code of `module` (a file of diffusers' schedulers) sees `float64` wherever it says `float32`."""
    names = [name for name in ("torch", "np") if hasattr(module, name)]
    originals = {name: getattr(module, name) for name in names}
    for name in names:
        setattr(module, name, _Wide(originals[name]))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        for name, original in originals.items():
            setattr(module, name, original)
