"""Writes the golden tensors of the networks: `unet/tests/golden/*.safetensors` (and the `.json` configs).

Parameters, inputs and cotangents are f32; outputs and gradients are evaluated in f64 on those f32 numbers and rounded to
f32 once, so that a comparison measures the error of the implementation under test alone. (The sinusoid of UNet2DModel
stays in f32, as diffusers always evaluates it.) The loss is L = sum(output * cotangent).

Tensor names
  param/<key>  grad/<key>  input  timesteps  class_labels  cotangent  output  input_grad
  the book network: output_train, output_eval instead of output; stat/<key> (running statistics after one training forward
  that starts from param/<key>); grad/<key> and input_grad belong to the training-mode forward; grad_eval/<key> and
  input_grad_eval to the evaluation-mode forward with the statistics of param/<key>.

`book_full.safetensors` holds no parameters. Let k be the position of a key among all keys that do not end in
"num_batches_tracked", sorted by bytes, and j the row-major index of an element. With wrapping u64 arithmetic

    z = ((k << 32) + j + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    u = (z >> 11) * 2^-52 - 1                                        (in [-1, 1), exact in f64)

and the element is, evaluated in f64 and rounded to f32,

    sqrt(6 / fan_in) * u   conv and linear weights (fan_in = elements per output channel)
    1 + 0.25 * u           BatchNorm weights (`.convs.1.weight`, `.convs.4.weight`)
    1 + 0.5 * u            running_var
    u                      label_emb.weight
    0.1 * u                everything else (all biases, running_mean)

A gradient of more than 16384 elements is stored as its first four rows (leading axis) under `grad_head/<key>`, every other
one whole under `grad/<key>`.

Usage: python tools/reference/golden_unets.py [--out unet/tests/golden] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from book_unet import UNetCond

ROOT = Path(__file__).resolve().parents[2]
HEAD_LIMIT = 16384
HEAD_ROWS = 4


def splitmix(k: int, count: int) -> np.ndarray:
    """The numbers u of the module's description for the tensor at position k."""
    with np.errstate(over="ignore"):
        z = (np.uint64(k << 32) + np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def formula_parameters(model: UNetCond) -> None:
    """Fills `model` with the formula of the module's description."""
    state = model.state_dict()
    keys = sorted((key for key in state if not key.endswith("num_batches_tracked")), key=str.encode)
    for k, key in enumerate(keys):
        shape = state[key].shape
        u = splitmix(k, state[key].numel()).reshape(tuple(shape))
        if key == "label_emb.weight":
            value = u
        elif key.endswith((".convs.1.weight", ".convs.4.weight")):
            value = 1.0 + 0.25 * u
        elif key.endswith("running_var"):
            value = 1.0 + 0.5 * u
        elif key.endswith(".weight"):
            value = np.sqrt(6.0 / float(np.prod(shape[1:]))) * u
        else:
            value = 0.1 * u
        state[key].copy_(torch.from_numpy(value.astype(np.float32)))


def randomise(model: torch.nn.Module, rng: torch.Generator) -> None:
    """Random values for every tensor of the state dict, norms and running statistics included."""
    norms = (torch.nn.GroupNorm, torch.nn.BatchNorm2d)
    for module in model.modules():
        for name, tensor in list(module.named_parameters(recurse=False)) + list(module.named_buffers(recurse=False)):
            if not tensor.is_floating_point():
                continue
            z = torch.randn(tensor.shape, generator=rng)
            if isinstance(module, norms):
                value = {"weight": 1 + 0.2 * z, "bias": 0.3 * z, "running_mean": 0.3 * z}.get(name)
                if value is None:
                    value = torch.rand(tensor.shape, generator=rng) + 0.5
            elif isinstance(module, torch.nn.Embedding):
                value = z
            elif name == "bias":
                value = 0.2 * z
            else:
                value = z * (1.5 / tensor[0].numel()) ** 0.5
            tensor.data.copy_(value)


def differentiate(model, call, x, cotangent):
    """Output, input gradient and {key: gradient} of sum(output * cotangent)."""
    model.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_(True)
    output = call(x)
    (output * cotangent).sum().backward()
    gradients = {
        key: (torch.zeros_like(p) if p.grad is None else p.grad.clone()) for key, p in model.named_parameters()
    }
    return output.detach(), x.grad, gradients


def worst(reference, candidate) -> float:
    """Relative L2 difference of two tensors."""
    reference, candidate = reference.double(), candidate.double()
    return float((reference - candidate).norm() / reference.norm().clamp(min=1e-30))


def f32(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().clone()


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: f32(tensor) for name, tensor in sorted(tensors.items())}, str(path), metadata={"format": "pt"})
    path.chmod(0o644)
    print(f"{path.name}: {len(tensors)} tensors, {path.stat().st_size / 1e6:.3f} MB")


def book(out: Path, name: str, base: int, timesteps: list[float], labels: list[int], from_formula: bool, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    single = UNetCond(base=base)
    if from_formula:
        formula_parameters(single)
    else:
        randomise(single, rng)
    batch = len(timesteps)
    x = torch.randn((batch, 1, 28, 28), generator=rng)
    cotangent = torch.randn((batch, 1, 28, 28), generator=rng)
    t = torch.tensor(timesteps, dtype=torch.float32)
    y = torch.tensor(labels, dtype=torch.int64)
    initial = copy.deepcopy(single.state_dict())

    model = copy.deepcopy(single).double()
    tensors = {"input": x, "timesteps": t, "class_labels": y, "cotangent": cotangent}

    def run(network, dtype):
        return differentiate(network, lambda z: network(z, t, y), x.to(dtype), cotangent.to(dtype))

    model.eval()
    tensors["output_eval"], tensors["input_grad_eval"], evaluation = run(model, torch.float64)
    model.train()
    tensors["output_train"], tensors["input_grad"], training = run(model, torch.float64)
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            tensors[f"stat/{key}"] = value
    if not from_formula:
        tensors.update({f"param/{key}": value for key, value in initial.items()})
    for prefix, gradients in (("grad", training), ("grad_eval", evaluation)):
        if from_formula and prefix == "grad_eval":
            continue
        for key, value in gradients.items():
            if from_formula and value.numel() > HEAD_LIMIT:
                tensors[f"{prefix}_head/{key}"] = value[:HEAD_ROWS]
            else:
                tensors[f"{prefix}/{key}"] = value
    if from_formula:
        del tensors["input_grad_eval"]
    write(out / f"{name}.safetensors", tensors)

    single.train()
    output, input_grad, gradients = run(single, torch.float32)
    # A bias in front of a BatchNorm has no gradient in training mode: only its absolute size says something.
    dead = {key for key in gradients if key.endswith((".convs.0.bias", ".convs.3.bias"))}
    print(
        f"  f32 against f64: output {worst(tensors['output_train'], output):.1e},"
        f" input_grad {worst(tensors['input_grad'], input_grad):.1e},"
        f" worst parameter {max(worst(training[k], g) for k, g in gradients.items() if k not in dead):.1e};"
        f" conv biases in front of BatchNorm: at most {max(float(gradients[k].abs().max()) for k in dead):.1e}"
    )


RESIDUAL = {
    # Convolutions only: no attention anywhere, no classes.
    "residual_plain": dict(
        model=dict(
            sample_size=16, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4, add_attention=False,
        ),
        size=(16, 16), timesteps=[0.0, 17.25, 999.0], labels=None, seed=11,
    ),
    # Attention with several heads on every level, class embedding, a side that is not square.
    "residual_attention": dict(
        model=dict(
            sample_size=(8, 12), in_channels=2, out_channels=3, block_out_channels=(16, 32), layers_per_block=1,
            down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
            norm_num_groups=8, attention_head_dim=8, num_class_embeds=11,
        ),
        size=(8, 12), timesteps=[1.0, 500.5, 1000.0], labels=[0, 10, 7], seed=12,
    ),
    # The conventions of the original DDPM checkpoints.
    "residual_ddpm": dict(
        model=dict(
            sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 16, 16), layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4, norm_eps=1e-6, attention_head_dim=None, flip_sin_to_cos=False, freq_shift=1,
            downsample_padding=0,
        ),
        size=(16, 16), timesteps=[3.0, 751.0], labels=None, seed=13,
    ),
    # Three levels on 28x28, attention at 7x7, classes with an unused last row: the shape of a digit model.
    "residual_digits": dict(
        model=dict(
            sample_size=28, in_channels=1, out_channels=1, block_out_channels=(8, 16, 24), layers_per_block=2,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=4, attention_head_dim=8, add_attention=True, num_class_embeds=11,
        ),
        size=(28, 28), timesteps=[0.0, 123.75, 999.0], labels=[3, 10, 3], seed=14,
    ),
    # AdaGN. Without attn_norm_num_groups the middle attention then has no group_norm at all.
    "residual_scale_shift": dict(
        model=dict(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4, attention_head_dim=8, num_class_embeds=3, resnet_time_scale_shift="scale_shift",
        ),
        size=(8, 8), timesteps=[10.0, 640.5], labels=[2, 0], seed=15,
    ),
    # AdaGN with a group_norm in the middle attention, input centring, a time embedding of its own width.
    "residual_scale_shift_norm": dict(
        model=dict(
            sample_size=8, in_channels=1, out_channels=2, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4, attn_norm_num_groups=8, attention_head_dim=4, resnet_time_scale_shift="scale_shift",
            center_input_sample=True, time_embedding_dim=20,
        ),
        size=(8, 8), timesteps=[1.0, 321.0], labels=None, seed=16,
    ),
}


def residual(out: Path, name: str, model: dict, size, timesteps, labels, seed: int) -> None:
    from diffusers import UNet2DModel

    rng = torch.Generator().manual_seed(seed)
    single = UNet2DModel(**model)
    randomise(single, rng)
    batch = len(timesteps)
    x = torch.randn((batch, model["in_channels"], *size), generator=rng)
    cotangent = torch.randn((batch, model["out_channels"], *size), generator=rng)
    t = torch.tensor(timesteps, dtype=torch.float32)
    y = None if labels is None else torch.tensor(labels, dtype=torch.int64)
    tensors = {"input": x, "timesteps": t, "cotangent": cotangent}
    if y is not None:
        tensors["class_labels"] = y
    tensors.update({f"param/{key}": value.clone() for key, value in single.state_dict().items()})

    def run(network, dtype):
        return differentiate(network, lambda z: network(z, t, class_labels=y).sample, x.to(dtype), cotangent.to(dtype))

    double = copy.deepcopy(single).double()
    tensors["output"], tensors["input_grad"], gradients = run(double, torch.float64)
    tensors.update({f"grad/{key}": value for key, value in gradients.items()})
    write(out / f"{name}.safetensors", tensors)
    with tempfile.TemporaryDirectory() as folder:
        single.save_config(folder)
        (out / f"{name}.json").write_text((Path(folder) / "config.json").read_text())

    output, input_grad, singles = run(single, torch.float32)
    # The softmax does not feel a constant added to all keys: the gradient of to_k.bias is zero up to rounding.
    dead = {key for key in singles if key.endswith("to_k.bias")}
    print(
        f"  f32 against f64: output {worst(tensors['output'], output):.1e},"
        f" input_grad {worst(tensors['input_grad'], input_grad):.1e},"
        f" worst parameter {max(worst(gradients[k], g) for k, g in singles.items() if k not in dead):.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "unet/tests/golden", help="folder of the golden files")
    parser.add_argument("--only", nargs="*", help="names of the files to write; all without this option")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    def wanted(name: str) -> bool:
        return not options.only or name in options.only

    if wanted("book"):
        book(options.out, "book", 8, [1, 500, 1000], [3, -1, 7], from_formula=False, seed=1)
    if wanted("book_full"):
        # With this seed no input of a ReLU is closer to zero than 9e-6: f32 and f64 take the same branch everywhere.
        book(options.out, "book_full", 64, [250, 1000], [9, -1], from_formula=True, seed=20)
    for name, settings in RESIDUAL.items():
        if wanted(name):
            residual(options.out, name, **settings)


if __name__ == "__main__":
    main()
