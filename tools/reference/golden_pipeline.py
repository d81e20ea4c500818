"""Writes small Stable Diffusion pipelines and what diffusers draws with them: `cli/tests/golden/stable/`.

  first/     a StableDiffusionPipeline as of Stable Diffusion 1: convolutional projections, quick_gelu, PNDM, eps
  second/    as of Stable Diffusion 2: linear projections, a list of heads, gelu, v prediction
  filling/   a StableDiffusionInpaintPipeline: nine input channels
  distilled/ a LatentConsistencyModelPipeline: a network that has learned guidance
  adapter_*  LoRA files for `first`, in the style of diffusers and of kohya's scripts
  clip/      a CLIPModel for similarity
  pictures.safetensors   the finished pictures `[1, H, W, 3]` in [0, 1], by the names in cases.json
  cases.json             name, pipeline, arguments of `tweedie` beside --model, --noise, --out
  noise_*.safetensors    `initial` of each case and `steps` where noise is added, as `tweedie txt2img --noise` reads it

All weights are random and stored in f16; diffusers evaluates in f32 from these numbers. Latents are given, so that no random number of
PyTorch is needed. The tokenizer is that of `golden_clip.py`, which has to have run.

Usage: python tools/reference/golden_pipeline.py [--out cli/tests/golden/stable]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "latent/tests/golden/tokenizer"
# diffusers 0.42.1 looks for the last normalisation in a module that transformers 5 no longer has.
CLIPTextModel.text_model = property(lambda self: self)

SIZE = 32
FACTOR = 2
PROMPT = "a painting of a fox in the style of a famous painter, 4k"
NEGATIVE = "blurry café"


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Random values that keep activations near unit variance, rounded to f16."""
    rng = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        z = torch.randn(tensor.shape, generator=rng)
        if tensor.dim() > 1:
            fan = tensor[0].numel()
            value = z if "embedding" in name else z / fan**0.5
        else:
            value = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
        tensor.data.copy_(value.half().float())


def text_encoder(vocabulary: int, act: str, layers: int, seed: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=24, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=3,
        max_position_embeddings=77, hidden_act=act, projection_dim=24, bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )
    model = CLIPTextModel(config).eval()
    randomise(model, seed)
    return model


def unet(seed: int, **keys) -> UNet2DConditionModel:
    model = UNet2DConditionModel(
        sample_size=SIZE // FACTOR, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        out_channels=4, **keys,
    ).eval()
    randomise(model, seed)
    return model


def autoencoder(seed: int) -> AutoencoderKL:
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 16),
        layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=SIZE,
    ).eval()
    randomise(model, seed)
    return model


SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "steps_offset": 1,
}


def save(pipeline, folder: Path, tokenizer: str) -> None:
    """The pipeline in f16, with the files of its tokenizer as they are published."""
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    pipeline.to(torch.float32)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(TOKENIZER / tokenizer, folder / "tokenizer")


def adapters(network: UNet2DConditionModel, out: Path) -> dict[str, torch.Tensor]:
    """Writes one adapter in two styles; returns the sum of its products by the name of the weight."""
    rng = torch.Generator().manual_seed(5)
    diffusers_style, kohya, products = {}, {}, {}
    names = [name for name, _ in network.named_parameters() if name.endswith(("to_q.weight", "to_v.weight", "to_out.0.weight"))]
    for name in names:
        layer, shape = name.removesuffix(".weight"), network.get_parameter(name).shape
        down, up = (torch.randn(s, generator=rng) * 0.4 for s in ((2, shape[1]), (shape[0], 2)))
        diffusers_style[f"unet.{layer}.lora_A.weight"], diffusers_style[f"unet.{layer}.lora_B.weight"] = down, up
        key = "lora_unet_" + layer.replace(".", "_")
        kohya[f"{key}.lora_down.weight"], kohya[f"{key}.lora_up.weight"] = down, up
        kohya[f"{key}.alpha"] = torch.tensor(2.0)
        products[name] = up @ down
    save_file(diffusers_style, out / "adapter_diffusers.safetensors")
    save_file(kohya, out / "adapter_kohya.safetensors")
    return products


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "cli/tests/golden/stable")
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()

    tokenizers = {name: CLIPTokenizer.from_pretrained(TOKENIZER / name) for name in ("first", "second")}
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    first = StableDiffusionPipeline(
        vae=autoencoder(1), text_encoder=text_encoder(len(tokenizers["first"]), "quick_gelu", 2, 2), tokenizer=tokenizers["first"],
        unet=unet(3, attention_head_dim=2), scheduler=PNDMScheduler(**SCHEDULER, skip_prk_steps=True, set_alpha_to_one=False), **parts,
    )
    second = StableDiffusionPipeline(
        vae=first.vae, text_encoder=text_encoder(len(tokenizers["second"]), "gelu", 3, 4), tokenizer=tokenizers["second"],
        unet=unet(6, attention_head_dim=(2, 4), use_linear_projection=True),
        scheduler=DDIMScheduler(**SCHEDULER, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction"), **parts,
    )
    filling = StableDiffusionInpaintPipeline(
        vae=first.vae, text_encoder=first.text_encoder, tokenizer=first.tokenizer, unet=unet(7, attention_head_dim=2, in_channels=9),
        scheduler=DDIMScheduler(**SCHEDULER, clip_sample=False, set_alpha_to_one=False), **parts,
    )
    save(first, out / "first", "first")
    # As in the published file, where the spacing is not said: PNDM then takes `leading`, and Euler and DPM-Solver `linspace`, which is
    # also what `from_config` makes of a scheduler that was built without it.
    path = out / "first/scheduler/scheduler_config.json"
    keys = json.loads(path.read_text())
    del keys["timestep_spacing"]
    path.write_text(json.dumps(keys, indent=2) + "\n")
    save(second, out / "second", "second")
    save(filling, out / "filling", "first")
    distilled = LatentConsistencyModelPipeline(
        vae=first.vae, text_encoder=first.text_encoder, tokenizer=first.tokenizer,
        unet=unet(8, attention_head_dim=2, time_cond_proj_dim=20), scheduler=LCMScheduler(**SCHEDULER, clip_sample=False), **parts,
    )
    save(distilled, out / "distilled", "first")
    products = adapters(first.unet, out)

    rng = torch.Generator().manual_seed(11)
    pictures, cases = {}, []

    def draw(name: str, pipeline, arguments: list[str], width: int = SIZE, height: int = SIZE, folder: str = "first", **options) -> None:
        latents = torch.randn((1, 4, height // FACTOR, width // FACTOR), generator=rng)
        added = []

        def noise(shape, **_):
            added.append(torch.randn(shape, generator=rng))
            return added[-1]

        diffusers.schedulers.scheduling_lcm.randn_tensor = noise
        with torch.no_grad():
            image = pipeline(latents=latents.clone(), width=width, height=height, output_type="np", **options).images
        steps = {"steps": torch.stack(added)} if added else {}
        save_file({"initial": latents} | steps, out / f"noise_{name}.safetensors")
        assert np.isfinite(image).all()
        spread = float(image.std())
        assert spread > 0.05, f"{name}: a picture of one colour tells nothing"
        pictures[name] = torch.from_numpy(np.ascontiguousarray(image))
        cases.append({"name": name, "pipeline": folder, "arguments": arguments})
        print(f"{name}: standard deviation {spread:.3f}, {float(((image == 0) | (image == 1)).mean()):.2f} of it cut off")

    text = ["--prompt", PROMPT, "--negative", NEGATIVE, "--guidance", "7.5"]
    words = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": 7.5}
    for name, scheduler, keys, sampler in [
        ("pndm", None, {}, []),
        ("ddim", DDIMScheduler, {"set_alpha_to_one": False}, ["--sampler", "ddim"]),
        ("euler", EulerDiscreteScheduler, {}, ["--sampler", "euler"]),
        ("dpm", DPMSolverMultistepScheduler, {}, ["--sampler", "dpm++2m"]),
        ("karras", DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, ["--sampler", "dpm++2m", "--sigmas", "karras"]),
    ]:
        pipeline = first
        if scheduler is not None:
            pipeline = StableDiffusionPipeline(**{**first.components, "scheduler": scheduler.from_config(first.scheduler.config, **keys)},
                                               requires_safety_checker=False)
        draw(name, pipeline, [*text, *sampler, "--steps", "10"], num_inference_steps=10, **words)
    draw("rescaled", first, [*text, "--guidance-rescale", "0.7", "--steps", "5"], num_inference_steps=5, guidance_rescale=0.7, **words)
    draw("unguided", first, ["--prompt", PROMPT, "--guidance", "1", "--steps", "5"], num_inference_steps=5, prompt=PROMPT, guidance_scale=1.0)
    draw("skipped", first, [*text, "--clip-skip", "1", "--compat", "--steps", "5"], num_inference_steps=5, clip_skip=1, **words)
    sides = ["--width", "40", "--height", "24"]
    draw("oblong", first, [*text, *sides, "--steps", "4"], width=40, height=24, num_inference_steps=4, **words)
    draw("v", second, [*text, "--steps", "10"], folder="second", num_inference_steps=10, **words)

    for style, weight in [("diffusers", 0.8), ("kohya", -0.5)]:
        kept = {name: first.unet.get_parameter(name).data.clone() for name in products}
        for name, product in products.items():
            # As weights that stay in f16.
            first.unet.get_parameter(name).data += weight * product
            first.unet.get_parameter(name).data.copy_(first.unet.get_parameter(name).data.half().float())
        file = f"adapter_{style}.safetensors"
        draw(f"lora_{style}", first, [*text, "--lora", f"{file}:{weight}", "--steps", "5"], num_inference_steps=5, **words)
        for name, value in kept.items():
            first.unet.get_parameter(name).data.copy_(value)

    # A picture of soft stripes, and a mask of its right half.
    ramp = np.linspace(0, 255, SIZE).astype(np.uint8)
    picture = np.stack([np.tile(ramp, (SIZE, 1)), np.tile(ramp[::-1, None], (1, SIZE)), np.full((SIZE, SIZE), 128, np.uint8)], -1)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[4:28, 16:] = 255
    Image.fromarray(picture).save(out / "picture.png")
    Image.fromarray(mask).save(out / "mask.png")
    # The mean of what the encoder says, instead of a draw.
    for model in (filling.vae,):
        encode = model.encode
        model.encode = lambda x, encode=encode: diffusers.models.modeling_outputs.AutoencoderKLOutput(Mean(encode(x).latent_dist))
    draw("filling", filling, [*text, "--image", "picture.png", "--mask", "mask.png", "--steps", "5"], folder="filling",
         num_inference_steps=5, image=Image.fromarray(picture), mask_image=Image.fromarray(mask), strength=1.0, **words)
    lcm = ["--prompt", PROMPT, "--guidance", "8.5"]
    draw("lcm", distilled, [*lcm, "--steps", "4"], folder="distilled", num_inference_steps=4, prompt=PROMPT, guidance_scale=8.5)
    draw("lcm_single", distilled, [*lcm, "--steps", "1"], folder="distilled", num_inference_steps=1, prompt=PROMPT, guidance_scale=8.5)
    save_file(pictures, out / "pictures.safetensors")
    (out / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


class Mean:
    """A distribution whose every draw is its mean."""

    def __init__(self, distribution) -> None:
        self.mean = distribution.mean

    def sample(self, generator=None) -> torch.Tensor:
        return self.mean

    def mode(self) -> torch.Tensor:
        return self.mean


if __name__ == "__main__":
    main()
