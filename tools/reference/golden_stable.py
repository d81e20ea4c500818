"""Writes what the networks of Stable Diffusion are compared with: `unet/tests/golden/cross_*`, `vae*` and `stable.json`.

cross_NAME.safetensors and cross_NAME.json, of UNet2DConditionModel:
  input  timesteps  encoder_hidden_states  output  and, of a network that has learned guidance, guidance (its scale)
vae_NAME.safetensors and vae_NAME.json, of AutoencoderKL:
  input  moments  latents  output              (moments = encoded input, output = decoded latents)

No parameters are stored but those of `vae_legacy`, under `param/<key>` and the key names of old files, which diffusers itself
has read here. All others follow from the formula at the head of `golden_variants.py`, which covers these networks, too: k is the
position of a key among all keys, sorted by bytes. As there, parameters and inputs are f32, and outputs are evaluated in f64.

stable.json: {name: {config, tensors, parameters, keys}} of published networks, as published.json. No weights are made for these.

Usage: python tools/reference/golden_stable.py [--out unet/tests/golden] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging
from safetensors.torch import save_file

from golden_unets import ROOT, worst, write
from golden_variants import counted, formula_parameters


def cross(*attends: bool) -> dict:
    """Blocks of the levels, the finest first."""
    down = tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends)
    up = tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends))
    return dict(down_block_types=down, up_block_types=up)


CROSS = {
    # The conventions of Stable Diffusion 1: projections by convolution, as many heads everywhere.
    "convolution": dict(
        model=dict(
            sample_size=(8, 12), block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=2,
            cross_attention_dim=24, **cross(True, False),
        ),
        size=(8, 12), timesteps=[1.0, 981.0], tokens=7,
    ),
    # Those of Stable Diffusion 2: linear projections, heads of one width; the nine channels of inpainting.
    "linear": dict(
        model=dict(
            sample_size=8, in_channels=9, block_out_channels=(16, 32, 32), layers_per_block=2, norm_num_groups=4,
            attention_head_dim=(2, 4, 4), cross_attention_dim=20, use_linear_projection=True, upcast_attention=True,
            **cross(True, True, False),
        ),
        size=(8, 8), timesteps=[0.0, 500.5], tokens=5,
    ),
    # Sides that cannot be halved twice, learned guidance, several blocks in a transformer, all levels attend.
    "guided": dict(
        model=dict(
            in_channels=4, block_out_channels=(16, 24, 32), layers_per_block=1, norm_num_groups=8,
            attention_head_dim=(1, 3, 2), cross_attention_dim=12, time_cond_proj_dim=18, transformer_layers_per_block=(1, 2, 3),
            mid_block_scale_factor=1.5, **cross(True, True, True),
        ),
        size=(7, 10), timesteps=[999.0, 259.0], tokens=3, guidance=7.5,
    ),
    # What no published network has, but the configuration can say.
    "other": dict(
        model=dict(
            in_channels=3, out_channels=5, block_out_channels=(12, 16), layers_per_block=(1, 2), norm_num_groups=4,
            attention_head_dim=4, cross_attention_dim=9, center_input_sample=True, flip_sin_to_cos=False, freq_shift=1,
            downsample_padding=0, act_fn="gelu", norm_eps=1e-4, resnet_time_scale_shift="scale_shift",
            time_embedding_dim=20, conv_in_kernel=1, conv_out_kernel=1, mid_block_type="UNetMidBlock2D",
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        size=(6, 10), timesteps=[3.0, 751.0], tokens=4,
    ),
    # A single level without a middle.
    "one_level": dict(
        model=dict(
            in_channels=2, out_channels=2, block_out_channels=(8,), layers_per_block=1, norm_num_groups=2, attention_head_dim=2,
            cross_attention_dim=6, mid_block_type=None, act_fn="mish", **cross(True),
        ),
        size=(3, 1), timesteps=[10.0], tokens=1,
    ),
}

VAE = {
    "levels": dict(
        model=dict(
            block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4, latent_channels=4, sample_size=32,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        size=(16, 24),
    ),
    "bare": dict(
        model=dict(
            in_channels=1, out_channels=2, block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=2, latent_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, act_fn="relu",
            use_quant_conv=False, use_post_quant_conv=False, mid_block_add_attention=False, scaling_factor=0.5, shift_factor=0.1,
        ),
        size=(10, 6),
    ),
    "legacy": dict(
        model=dict(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, latent_channels=2), size=(5, 4), legacy=True
    ),
}

SD1 = dict(
    sample_size=64, cross_attention_dim=768, attention_head_dim=8, layers_per_block=2, block_out_channels=(320, 640, 1280, 1280)
)
STABLE = {
    "stable-diffusion-v1-5": (UNet2DConditionModel, SD1),
    "stable-diffusion-inpainting": (UNet2DConditionModel, SD1 | dict(in_channels=9)),
    "stable-diffusion-2-1": (
        UNet2DConditionModel,
        SD1 | dict(sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
    ),
    "lcm-dreamshaper-v7": (UNet2DConditionModel, SD1 | dict(sample_size=96, time_cond_proj_dim=256)),
    "sd-vae": (
        AutoencoderKL,
        dict(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
    ),
}

LEGACY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def write_config(model, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_config(folder)
        path.write_text((Path(folder) / "config.json").read_text())


def text_conditioned(out: Path, name: str, model: dict, size, timesteps, tokens: int, guidance=None, *, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    single = UNet2DConditionModel(**model).eval()
    formula_parameters(single)
    n = len(timesteps)
    x = torch.randn((n, model.get("in_channels", 4), *size), generator=rng)
    text = torch.randn((n, tokens, model["cross_attention_dim"]), generator=rng)
    t = torch.tensor(timesteps, dtype=torch.float32)
    tensors = {"input": x, "timesteps": t, "encoder_hidden_states": text}
    if guidance is not None:
        tensors["guidance"] = torch.tensor([guidance])

    def run(network, dtype):
        cond = None
        if guidance is not None:
            scale = torch.tensor(guidance - 1, dtype=dtype).repeat(n)
            # The function of the pipeline, which does not read the pipeline.
            embed = StableDiffusionPipeline.get_guidance_scale_embedding
            cond = embed(None, scale, embedding_dim=model["time_cond_proj_dim"], dtype=dtype)
        with torch.no_grad():
            return network(x.to(dtype), t, text.to(dtype), timestep_cond=cond).sample

    tensors["output"] = run(copy.deepcopy(single).double(), torch.float64)
    write(out / f"cross_{name}.safetensors", tensors)
    write_config(single, out / f"cross_{name}.json")
    print(f"  f32 against f64: {worst(tensors['output'], run(single, torch.float32)):.1e}")


def autoencoder(out: Path, name: str, model: dict, size, legacy: bool = False, *, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    single = AutoencoderKL(**model).eval()
    formula_parameters(single)
    tensors = {}
    if legacy:
        state = {}
        for key, value in single.state_dict().items():
            for present, old in LEGACY.items():
                key = key.replace(f".{present}.", f".{old}.")
            state[key] = value.clone()
        assert state.keys() != single.state_dict().keys()
        with tempfile.TemporaryDirectory() as folder:
            single.save_config(folder)
            save_file(state, str(Path(folder) / "diffusion_pytorch_model.safetensors"), metadata={"format": "pt"})
            read = AutoencoderKL.from_pretrained(folder).eval()
        assert all(torch.equal(value, read.state_dict()[key]) for key, value in single.state_dict().items())
        single = read
        tensors = {f"param/{key}": value for key, value in state.items()}
    factor = 2 ** (len(model["block_out_channels"]) - 1)
    x = torch.randn((2, model.get("in_channels", 3), *size), generator=rng)
    z = torch.randn((2, model["latent_channels"], *(side // factor for side in size)), generator=rng)

    def run(network, dtype):
        with torch.no_grad():
            return network.encode(x.to(dtype)).latent_dist.parameters, network.decode(z.to(dtype)).sample

    moments, output = run(copy.deepcopy(single).double(), torch.float64)
    tensors |= {"input": x, "latents": z, "moments": moments, "output": output}
    write(out / f"vae_{name}.safetensors", tensors)
    write_config(single, out / f"vae_{name}.json")
    errors = [f"{worst(a, b):.1e}" for a, b in zip((moments, output), run(single, torch.float32))]
    print(f"  f32 against f64: moments {errors[0]}, output {errors[1]}")


def published(out: Path) -> None:
    document = {}
    for name, (kind, settings) in STABLE.items():
        document[name] = counted(name, kind, settings)
    (out / "stable.json").write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "unet/tests/golden", help="folder of the golden files")
    parser.add_argument("--only", nargs="*", help="files (cross_linear) or `stable`; all without this option")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.set_verbosity_error()

    def wanted(name: str) -> bool:
        return not options.only or name in options.only

    for seed, (name, settings) in enumerate(CROSS.items(), 200):
        if wanted(f"cross_{name}"):
            text_conditioned(options.out, name, seed=seed, **settings)
    for seed, (name, settings) in enumerate(VAE.items(), 300):
        if wanted(f"vae_{name}"):
            autoencoder(options.out, name, seed=seed, **settings)
    if wanted("stable"):
        published(options.out)


if __name__ == "__main__":
    main()
