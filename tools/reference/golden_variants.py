"""Writes what the variants of UNet2DModel are compared with: `unet/tests/golden/variant_*`, `published.json`, `fits.json`.

variant_NAME.safetensors and variant_NAME.json: as the files of `golden_unets.py` (see there for the names of the tensors),
but with no parameters stored. Those follow from the numbers u of that module's description, for the position k of a key
among all keys, sorted by bytes:

    u                      tables (`class_embedding.weight`, `time_proj.weight`) and the frequencies of a Fourier embedding
    1 + 0.25 * u           other weights of one axis (norms)
    sqrt(6 / fan_in) * u   other weights
    0.1 * u                biases

Every gradient is stored whole, so that the files also hold every key and shape (those of the frequencies are zero).

published.json: {name: {config, tensors, parameters, keys}}, where `keys` is the 64-bit FNV-1a hash of the lines
"KEY SIZExSIZE...\n" of all tensors, sorted by bytes. No weights are made for these.

fits.json: which networks of two levels diffusers can run. For every (channels, down types, up types), in the order of the
lists, a bit, the first one highest, four to a hexadecimal digit.

Usage: python tools/reference/golden_variants.py [--out unet/tests/golden] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.utils import logging

from golden_unets import ROOT, differentiate, splitmix, worst, write


def blocks(*names: str) -> tuple[str, ...]:
    """Full names of blocks on the way down, the finest first."""
    return tuple(f"{name}Block2D" for name in names)


def config(down, up, channels, **rest) -> dict:
    return dict(
        in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        block_out_channels=channels, down_block_types=blocks(*down), up_block_types=blocks(*up),
    ) | rest


VARIANTS = {
    # ADM and consistency models: resampling residual blocks, AdaGN, classes.
    "adm": dict(
        model=config(
            ("ResnetDownsample", "AttnDown", "AttnDown"), ("AttnUp", "AttnUp", "ResnetUpsample"), (8, 12, 12),
            downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift", num_class_embeds=5,
            attn_norm_num_groups=2,
        ),
        size=(8, 12), timesteps=[3.0, 640.5], labels=[4, 0],
    ),
    # The same blocks without AdaGN; null is a convolution on the way down.
    "resampling": dict(
        model=config(
            ("AttnDown", "ResnetDownsample", "Down"), ("Up", "AttnUp", "ResnetUpsample"), (8, 8, 12), layers_per_block=2,
            downsample_type=None, upsample_type="resnet", mid_block_scale_factor=1.25,
        ),
        size=(8, 8), timesteps=[0.0, 999.0], labels=None,
    ),
    # The score-based networks: a path of the image resampled by FIR filters, Fourier embedding, no norm_num_groups.
    "score": dict(
        model=config(
            ("SkipDown", "SkipDown", "SkipDown"), ("SkipUp", "SkipUp", "SkipUp"), (8, 12, 16), norm_num_groups=None,
            time_embedding_type="fourier", mid_block_scale_factor=2**0.5, norm_eps=1e-6, center_input_sample=True,
        ),
        size=(8, 12), timesteps=[0.3, 17.5], labels=None,
    ),
    "score_attention": dict(
        model=config(
            ("AttnSkipDown", "AttnSkipDown"), ("AttnSkipUp", "SkipUp"), (32, 32), attention_head_dim=16,
            time_embedding_dim=8, mid_block_type=None,
        ),
        size=(4, 4), timesteps=[5.0, 750.0], labels=None,
    ),
    # Blocks that may stand beside others: the image is carried on a part of the way.
    "mixed": dict(
        model=config(
            ("SkipDown", "ResnetDownsample", "SkipDown"), ("Up", "SkipUp", "SkipUp"), (8, 12, 16),
            resnet_time_scale_shift="scale_shift",
        ),
        size=(8, 8), timesteps=[5.0, 750.0], labels=None,
    ),
    # AdaGN in both normalisations, reflecting filters, skip connections that nobody reads.
    "k_blocks": dict(
        model=config(
            ("KDown", "KDown"), ("KUp", "KUp"), (32, 32), layers_per_block=2, time_embedding_dim=8, mid_block_type=None,
            norm_num_groups=None, act_fn="gelu",
        ),
        size=(4, 6), timesteps=[5.0, 750.0], labels=None,
    ),
    "learned": dict(
        model=config(
            ("AttnDown", "Down"), ("Up", "AttnUp"), (6, 10), in_channels=4, out_channels=4, norm_num_groups=2,
            attention_head_dim=3, time_embedding_type="learned", num_train_timesteps=12, class_embed_type="timestep",
            act_fn="mish", mid_block_type=None,
        ),
        size=(6, 6), timesteps=[0.0, 11.0, 5.0], labels=[5, 3, 5],
    ),
    "fourier_labels": dict(
        model=config(
            ("Down", "AttnDown"), ("AttnUp", "Up"), (15, 10), in_channels=1, out_channels=2, norm_num_groups=5,
            attention_head_dim=None, time_embedding_type="fourier", class_embed_type="timestep", num_class_embeds=9,
            act_fn="gelu",
        ),
        size=(6, 10), timesteps=[0.25, 80.0], labels=[8, 1],
    ),
    # A sinusoid of odd width, heads that do not divide the channels.
    "odd": dict(
        model=config(
            ("AttnDown", "AttnDown"), ("AttnUp", "AttnUp"), (15, 10), in_channels=1, out_channels=4, norm_num_groups=5,
            attention_head_dim=4, freq_shift=1, act_fn="relu", class_embed_type="timestep", add_attention=False,
        ),
        size=(10, 6), timesteps=[1.0, 500.0], labels=[7, 0],
    ),
    # Sides are of any size where nothing halves them.
    "one_level": dict(
        model=config(
            ("AttnDown",), ("AttnUp",), (6,), in_channels=4, out_channels=1, norm_num_groups=3, attention_head_dim=5,
            act_fn="SWISH", downsample_padding=0,
        ),
        size=(9, 7), timesteps=[2.0, 33.0], labels=None,
    ),
}

# Configurations of published checkpoints.
PUBLISHED = {
    "google/ddpm-cifar10-32": dict(
        sample_size=32, block_out_channels=(128, 256, 256, 256), attention_head_dim=None, norm_eps=1e-6,
        downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
        down_block_types=blocks("Down", "AttnDown", "Down", "Down"), up_block_types=blocks("Up", "Up", "AttnUp", "Up"),
    ),
    "anton-l/ddpm-butterflies-128": dict(
        sample_size=128, block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=blocks("Down", "Down", "Down", "Down", "AttnDown", "Down"),
        up_block_types=blocks("Up", "AttnUp", "Up", "Up", "Up", "Up"),
    ),
    "openai/diffusers-cd_imagenet64_l2": dict(
        sample_size=64, block_out_channels=(192, 384, 576, 768), layers_per_block=3, attention_head_dim=64,
        num_class_embeds=1000, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=32, downsample_type="resnet",
        upsample_type="resnet", down_block_types=blocks("ResnetDownsample", "AttnDown", "AttnDown", "AttnDown"),
        up_block_types=blocks("AttnUp", "AttnUp", "AttnUp", "ResnetUpsample"),
    ),
    "google/ncsnpp-celebahq-256": dict(
        sample_size=256, block_out_channels=(128, 128, 256, 256, 256, 256, 256), attention_head_dim=None, norm_eps=1e-6,
        norm_num_groups=None, mid_block_scale_factor=1.41421356237, time_embedding_type="fourier",
        down_block_types=blocks(*["SkipDown"] * 4, "AttnSkipDown", "SkipDown", "SkipDown"),
        up_block_types=blocks("SkipUp", "SkipUp", "AttnSkipUp", *["SkipUp"] * 4),
    ),
}

DOWN = blocks("Down", "AttnDown", "ResnetDownsample", "SkipDown", "AttnSkipDown", "KDown")
UP = blocks("Up", "AttnUp", "ResnetUpsample", "SkipUp", "AttnSkipUp", "KUp")


def formula_parameters(model: torch.nn.Module) -> None:
    state = model.state_dict()
    for k, key in enumerate(sorted(state, key=str.encode)):
        shape = tuple(state[key].shape)
        u = splitmix(k, state[key].numel()).reshape(shape)
        if key in ("class_embedding.weight", "time_proj.weight"):
            value = u
        elif not key.endswith(".weight"):
            value = 0.1 * u
        elif len(shape) == 1:
            value = 1.0 + 0.25 * u
        else:
            value = np.sqrt(6.0 / float(np.prod(shape[1:]))) * u
        state[key].copy_(torch.from_numpy(value.astype(np.float32)))


def variant(out: Path, name: str, model: dict, size, timesteps, labels, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    single = UNet2DModel(**model)
    formula_parameters(single)
    x = torch.randn((len(timesteps), model["in_channels"], *size), generator=rng)
    cotangent = torch.randn((len(timesteps), model["out_channels"], *size), generator=rng)
    t = torch.tensor(timesteps, dtype=torch.float32)
    y = None if labels is None else torch.tensor(labels, dtype=torch.int64)
    tensors = {"input": x, "timesteps": t, "cotangent": cotangent}
    if y is not None:
        tensors["class_labels"] = y

    def run(network, dtype):
        time = t.long() if model.get("time_embedding_type") == "learned" else t.to(dtype)
        call = lambda z: network(z, time, class_labels=y).sample
        if y is not None and dtype == torch.float64 and model.get("time_embedding_type") == "fourier":
            # The logarithm of whole numbers is taken in f32 unless they are f64.
            call = lambda z: network(z, time, class_labels=y.double()).sample
        return differentiate(network, call, x.to(dtype), cotangent.to(dtype))

    double = copy.deepcopy(single).double()
    if model.get("class_embed_type") == "timestep":
        # diffusers casts the sinusoid of the time to the type of the model, but forgets that of the label.
        double.class_embedding.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    tensors["output"], tensors["input_grad"], gradients = run(double, torch.float64)
    tensors.update({f"grad/{key}": value for key, value in gradients.items()})
    assert set(gradients) == set(single.state_dict())
    write(out / f"variant_{name}.safetensors", tensors)
    with tempfile.TemporaryDirectory() as folder:
        single.save_config(folder)
        (out / f"variant_{name}.json").write_text((Path(folder) / "config.json").read_text())
    output, input_grad, singles = run(single, torch.float32)
    dead = {key for key in singles if key.endswith("to_k.bias") or float(gradients[key].norm()) == 0.0}
    print(
        f"  f32 against f64: output {worst(tensors['output'], output):.1e},"
        f" input_grad {worst(tensors['input_grad'], input_grad):.1e},"
        f" worst parameter {max(worst(gradients[k], g) for k, g in singles.items() if k not in dead):.1e}"
    )


def counted(name: str, kind: type, settings: dict) -> dict:
    """The config of a network of diffusers, and what its state dict comes to; no weights are made."""
    with torch.device("meta"):
        model = kind(**settings)
    with tempfile.TemporaryDirectory() as folder:
        model.save_config(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
    state = model.state_dict()
    lines = sorted((f"{key} {'x'.join(map(str, value.shape))}\n" for key, value in state.items()), key=str.encode)
    keys = 0xCBF29CE484222325
    for byte in "".join(lines).encode():
        keys = ((keys ^ byte) * 0x100000001B3) % 2**64
    parameters = sum(value.numel() for value in state.values())
    print(f"{name}: {len(state)} tensors, {parameters} parameters")
    return {"config": config, "tensors": len(state), "parameters": parameters, "keys": f"{keys:016x}"}


def published(out: Path) -> None:
    document = {}
    for name, settings in PUBLISHED.items():
        document[name] = counted(name, UNet2DModel, settings)
    (out / "published.json").write_text(json.dumps(document, indent=1) + "\n")


def fits(out: Path) -> None:
    """Whether a network of two levels can be built and run."""
    answers = {}
    for channels in ((32, 64), (32, 32)):
        bits = ""
        for down, up in itertools.product(itertools.product(DOWN, repeat=2), itertools.product(UP, repeat=2)):
            try:
                model = UNet2DModel(
                    block_out_channels=channels, layers_per_block=1, down_block_types=down, up_block_types=up,
                    mid_block_type=None, time_embedding_dim=4,
                )
                with torch.no_grad():
                    model(torch.zeros((1, 3, 4, 4)), torch.tensor([1.0]))
                bits += "1"
            except (RuntimeError, ValueError, IndexError):
                bits += "0"
        answers["x".join(map(str, channels))] = f"{int(bits, 2):0{len(bits) // 4}x}"
        print(f"{channels}: {bits.count('1')} of {len(bits)}")
    (out / "fits.json").write_text(json.dumps({"down": DOWN, "up": UP, "fits": answers}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "unet/tests/golden", help="folder of the golden files")
    parser.add_argument("--only", nargs="*", help="variants (adm), `published` or `fits`; all without this option")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.set_verbosity_error()

    def wanted(name: str) -> bool:
        return not options.only or name in options.only

    for seed, (name, settings) in enumerate(VARIANTS.items(), 100):
        if wanted(name):
            variant(options.out, name, seed=seed, **settings)
    if wanted("published"):
        published(options.out)
    if wanted("fits"):
        fits(options.out)


if __name__ == "__main__":
    main()
