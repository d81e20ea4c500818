"""Writes the golden tensors of the classifier: `unet/tests/golden/classifier_*.safetensors` (and the `.json` configs).

The network is made of diffusers' blocks, in the order of `UNet2DModel`, with the attention pooling of CLIP (Radford et al. 2021,
`AttentionPool2d`, which guided-diffusion's EncoderUNetModel has, too) or the mean over the pixels, and a linear layer. Without a
time the residual blocks are built with `temb_channels=None`.

Everything is evaluated in f64 (but for the sinusoid, which diffusers always evaluates in f32) on f32 parameters and inputs, and
rounded to f32 once. Parameters follow from the formula of golden_unets.py: with u the numbers of `splitmix` for the position of a
key among all keys, sorted by bytes, a weight of several axes is sqrt(6 / fan_in) u, a weight of one axis 1 + 0.25 u,
`pool.positional_embedding` 0.5 u, and everything else 0.1 u.

Tensor names
  input  timesteps  labels  logits  features
  label_grad    gradient of ln softmax(logits)[label] with respect to the input, image by image
  cotangent     [N, K]; grad/<key> are the gradients of sum(logits * cotangent), input_grad that of the input

Usage: python tools/reference/golden_classifier.py [--out unet/tests/golden] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from torch import nn

from golden_unets import ROOT, splitmix, write


class AttentionPool(nn.Module):
    """The mean of all pixels attends to them and to itself; only its output is read."""

    def __init__(self, pixels: int, channels: int, head_dim: int | None):
        super().__init__()
        self.width = head_dim or channels
        self.heads = channels // self.width
        inner = self.heads * self.width
        self.positional_embedding = nn.Parameter(torch.zeros(pixels + 1, channels))
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.ModuleList([nn.Linear(inner, channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(2).transpose(1, 2)
        z = torch.cat([z.mean(1, keepdim=True), z], 1) + self.positional_embedding
        # As there, of every token, of which all but the first are then left out.
        q, k, v = (layer(z).unflatten(2, (self.heads, self.width)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        weights = torch.softmax(q @ k.transpose(2, 3) / self.width**0.5, -1)
        return self.to_out[0]((weights @ v).transpose(1, 2).flatten(2))[:, 0]


class EncoderClassifier(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        channels = config["block_out_channels"]
        timed = config["time"] == "positional"
        embedding = 4 * channels[0] if timed else None
        size = config["sample_size"]
        h, w = (size, size) if isinstance(size, int) else size
        coarse = 2 ** (len(channels) - 1)
        shared = dict(resnet_eps=config["norm_eps"], resnet_act_fn=config["act_fn"], dropout=0.0)
        self.conv_in = nn.Conv2d(config["in_channels"], channels[0], 3, padding=1)
        if timed:
            self.time_proj = Timesteps(channels[0], config["flip_sin_to_cos"], config["freq_shift"])
            self.time_embedding = TimestepEmbedding(channels[0], embedding)
        self.down_blocks = nn.ModuleList()
        for level, (kind, c) in enumerate(zip(config["down_block_types"], channels)):
            self.down_blocks.append(
                get_down_block(
                    kind,
                    num_layers=config["layers_per_block"],
                    in_channels=channels[max(level - 1, 0)],
                    out_channels=c,
                    temb_channels=embedding,
                    add_downsample=level + 1 < len(channels),
                    attention_head_dim=config["attention_head_dim"] or c,
                    downsample_padding=config["downsample_padding"],
                    resnet_groups=config["norm_num_groups"],
                    resnet_time_scale_shift=config["resnet_time_scale_shift"],
                    downsample_type="conv",
                    **shared,
                )
            )
        self.mid_block = None
        if config["mid_block_type"] is not None:
            self.mid_block = UNetMidBlock2D(
                in_channels=channels[-1],
                temb_channels=embedding,
                output_scale_factor=1,
                resnet_time_scale_shift=config["resnet_time_scale_shift"],
                attention_head_dim=config["attention_head_dim"] or channels[-1],
                resnet_groups=config["norm_num_groups"],
                attn_groups=None,
                add_attention=config["add_attention"],
                **shared,
            )
        self.conv_norm_out = nn.GroupNorm(config["norm_num_groups"], channels[-1], eps=config["norm_eps"])
        attends = config["pool"] == "attention"
        pixels = (h // coarse) * (w // coarse)
        self.pool = AttentionPool(pixels, channels[-1], config["attention_head_dim"]) if attends else None
        self.classifier = nn.Linear(channels[-1], config["num_classes"])

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        e = self.time_embedding(self.time_proj(t).to(x.dtype)) if hasattr(self, "time_embedding") else None
        h = self.conv_in(x)
        for block in self.down_blocks:
            h, _ = block(h, e)
        if self.mid_block is not None:
            h = self.mid_block(h, e)
        h = nn.functional.silu(self.conv_norm_out(h))
        features = self.pool(h) if self.pool is not None else h.mean((2, 3))
        return self.classifier(features), features


DEFAULTS = dict(
    _class_name="EncoderClassifier", norm_eps=1e-5, act_fn="silu", flip_sin_to_cos=True, freq_shift=0, downsample_padding=1,
    resnet_time_scale_shift="default", add_attention=True, mid_block_type="UNetMidBlock2D", layers_per_block=1, norm_num_groups=4,
    attention_head_dim=4,
)

CASES = {
    # A noisy classifier as Dhariwal & Nichol's: AdaGN, attention, pooling by attention, sides that are not equal.
    "attention": dict(
        config=dict(
            sample_size=[8, 12], in_channels=2, block_out_channels=[8, 16], down_block_types=["DownBlock2D", "AttnDownBlock2D"],
            resnet_time_scale_shift="scale_shift", num_classes=5, pool="attention", time="positional",
        ),
        timesteps=[0.0, 17.25, 999.0], labels=[4, 0, 2], seed=41,
    ),
    # Without a time and without a middle, one head.
    "clean": dict(
        config=dict(
            sample_size=8, in_channels=1, block_out_channels=[8, 12, 16], down_block_types=["DownBlock2D"] * 3,
            attention_head_dim=None, mid_block_type=None, num_classes=3, pool="attention", time="none",
        ),
        timesteps=[0.0, 5.0], labels=[1, 1], seed=42,
    ),
    # The mean, an added time with other conventions, another activation.
    "average": dict(
        config=dict(
            sample_size=8, in_channels=3, block_out_channels=[8, 16], down_block_types=["AttnDownBlock2D", "DownBlock2D"],
            act_fn="gelu", norm_eps=1e-6, flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, num_classes=4,
            pool="average", time="positional",
        ),
        timesteps=[1.0, 640.5], labels=[3, 0], seed=43,
    ),
    # The mean without a time.
    "features": dict(
        config=dict(
            sample_size=8, in_channels=1, block_out_channels=[8, 16], down_block_types=["DownBlock2D", "DownBlock2D"],
            add_attention=False, num_classes=10, pool="average", time="none",
        ),
        timesteps=[0.0, 0.0], labels=[9, 4], seed=44,
    ),
}


def fill(model: nn.Module) -> None:
    """The parameters of the module's description."""
    state = model.state_dict()
    for k, key in enumerate(sorted(state, key=str.encode)):
        shape = state[key].shape
        u = splitmix(k, state[key].numel()).reshape(tuple(shape))
        if key == "pool.positional_embedding":
            value = 0.5 * u
        elif not key.endswith(".weight"):
            value = 0.1 * u
        elif len(shape) == 1:
            value = 1.0 + 0.25 * u
        else:
            value = np.sqrt(6.0 / float(np.prod(shape[1:]))) * u
        state[key].copy_(torch.from_numpy(value.astype(np.float32)))


def case(out: Path, name: str, config: dict, timesteps, labels, seed: int) -> None:
    config = DEFAULTS | config
    model = EncoderClassifier(config)
    fill(model)
    model = model.double().eval()
    rng = torch.Generator().manual_seed(seed)
    size = config["sample_size"]
    h, w = (size, size) if isinstance(size, int) else size
    n, k = len(timesteps), config["num_classes"]
    x = torch.randn((n, config["in_channels"], h, w), generator=rng)
    cotangent = torch.randn((n, k), generator=rng)
    t, y = torch.tensor(timesteps, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)
    tensors = {"input": x, "timesteps": t, "labels": y, "cotangent": cotangent}

    z = x.double().requires_grad_(True)
    logits, features = model(z, t)
    tensors["logits"], tensors["features"] = logits.detach(), features.detach()
    (logits * cotangent.double()).sum().backward(retain_graph=True)
    tensors["input_grad"] = z.grad.clone()
    for key, parameter in model.named_parameters():
        tensors[f"grad/{key}"] = parameter.grad.clone()
    log_p = torch.log_softmax(logits, 1)[torch.arange(n), y].sum()
    (tensors["label_grad"],) = torch.autograd.grad(log_p, z)

    write(out / f"classifier_{name}.safetensors", tensors)
    (out / f"classifier_{name}.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "unet/tests/golden")
    parser.add_argument("--only", nargs="*", choices=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, arguments in CASES.items():
        if not options.only or name in options.only:
            case(options.out, name, **arguments)


if __name__ == "__main__":
    main()
