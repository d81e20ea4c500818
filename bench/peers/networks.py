"""The networks of the benchmark in PyTorch, and where their files lie.

`prepare.py` fills the folder, the peers read it:

    NAME/model/                         config.json and diffusion_pytorch_model.safetensors: a model directory
    NAME/input-BATCH.safetensors        sample [N,C,H,W], timestep [N], class_labels [N] (where the network has labels),
                                        encoder_hidden_states [N,L,D] (where it reads texts)
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
#: Tokens of a text.
TOKENS = 77


def config(name: str) -> dict:
    """The `config.json` of a network."""
    if name == "digits":
        return json.loads((ROOT / "cli/assets/digits/config.json").read_text())
    return {"book": BOOK, "cifar10": CIFAR10, "sd15": SD15}[name]


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


def build(config: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The callable module (x, t, y) -> output, and the module whose state dict has the keys of the model directory."""
    if config["_class_name"] == "UNetCond":
        from book_unet import UNetCond

        network = UNetCond(
            base=config["base_channels"], embed_dim=config["embed_dim"], num_labels=config["num_classes"],
            in_channels=config["in_channels"],
        )
        return network, network
    from diffusers import UNet2DConditionModel, UNet2DModel

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

