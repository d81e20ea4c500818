"""The networks of the benchmark in PyTorch, and where their files lie.

`prepare.py` fills the folder, the peers read it:

    NAME/model/                         config.json and diffusion_pytorch_model.safetensors: a model directory
    NAME/input-BATCH.safetensors        sample [N,C,H,W], timestep [N], class_labels [N] (where the network has labels),
                                        encoder_hidden_states [N,L,D] (where it reads texts); latents sample [N,L,h,w] alone for
                                        a decoder, input_ids [N,T] alone for a text encoder
    NAME/expected-BATCH.safetensors     output of the forward pass, target of the training step, losses of its first steps
    NAME/model-BATCH.onnx               the forward pass for ONNX Runtime and OpenVINO (weights beside it, where they are large)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/reference"))

#: Learning rate of the training steps, small enough that rounding does not grow in them; else PyTorch's defaults of Adam.
LEARNING_RATE = 1e-5

BOOK = {
    "_class_name": "UNetCond", "in_channels": 1, "image_size": 28, "embed_dim": 100, "num_classes": 10, "base_channels": 64,
}

#: The configuration of google/ddpm-cifar10-32.
CIFAR10 = {
    "_class_name": "UNet2DModel", "sample_size": 32, "in_channels": 3, "out_channels": 3, "center_input_sample": False,
    "time_embedding_type": "positional", "freq_shift": 1, "flip_sin_to_cos": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [128, 256, 256, 256], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "downsample_padding": 0, "act_fn": "silu", "attention_head_dim": None, "norm_num_groups": 32, "norm_eps": 1e-6,
    "add_attention": True,
}

#: The network of Stable Diffusion 1.5: diffusers' defaults but for these.
SD15 = {"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
#: Its autoencoder, of which the decoder is run.
SD15_VAE = {
    "_class_name": "AutoencoderKL", "sample_size": 512, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "latent_channels": 4,
    "scaling_factor": 0.18215,
}
#: Its text encoder.
SD15_TEXT = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu", "vocab_size": 49408,
    "max_position_embeddings": 77, "layer_norm_eps": 1e-5, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 1,
}
#: Tokens of a text.
TOKENS = 77

#: Weights of these are stored in half precision, as published: everybody computes in f32 from the same numbers.
HALF = ("sd15", "sd15-vae", "sd15-text")


def config(name: str) -> dict:
    """The `config.json` of a network."""
    if name == "digits":
        return json.loads((ROOT / "cli/assets/digits/config.json").read_text())
    return {"book": BOOK, "cifar10": CIFAR10, "sd15": SD15, "sd15-vae": SD15_VAE, "sd15-text": SD15_TEXT}[name]


def class_name(config: dict) -> str:
    """The class of a network of diffusers or of transformers."""
    return config.get("_class_name") or config["architectures"][0]


class Flat(torch.nn.Module):
    """A network of diffusers as a function of tensors that returns a tensor."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x, t, y=None):
        return self.network(x, t, class_labels=y).sample


class FlatText(torch.nn.Module):
    """A network of diffusers that reads texts, likewise."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x, t, texts):
        return self.network(x, t, texts).sample


class Decode(torch.nn.Module):
    """The decoder of an autoencoder."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        # The decoder alone, so that nobody counts or exports the encoder.
        self.post_quant_conv, self.decoder = network.post_quant_conv, network.decoder

    def forward(self, z):
        return self.decoder(self.post_quant_conv(z))


class States(torch.nn.Module):
    """The last hidden state of a text encoder."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, ids):
        return self.network(input_ids=ids).last_hidden_state


def build(config: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The callable module (x, t, y) -> output, and the module whose state dict has the keys of the model directory."""
    if class_name(config) == "CLIPTextModel":
        from transformers import CLIPTextConfig, CLIPTextModel

        network = CLIPTextModel(CLIPTextConfig(**config))
        return States(network), network
    if config["_class_name"] == "UNetCond":
        from book_unet import UNetCond

        network = UNetCond(
            base=config["base_channels"], embed_dim=config["embed_dim"], num_labels=config["num_classes"],
            in_channels=config["in_channels"],
        )
        return network, network
    from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

    if config["_class_name"] == "AutoencoderKL":
        network = AutoencoderKL(**{key: value for key, value in config.items() if not key.startswith("_")})
        return Decode(network), network
    if config["_class_name"] == "UNet2DConditionModel":
        network = UNet2DConditionModel(**{key: value for key, value in config.items() if not key.startswith("_")})
        return FlatText(network), network
    # Keys with an underscore are ours, or metadata of diffusers.
    network = UNet2DModel(**{key: value for key, value in config.items() if not key.startswith("_")})
    return Flat(network), network


def load(folder: Path) -> torch.nn.Module:
    """The callable module with the weights of a model directory."""
    from safetensors.torch import load_file

    call, network = build(json.loads((folder / "config.json").read_text()))
    network.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return call

