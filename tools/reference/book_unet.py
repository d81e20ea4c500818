"""The textbook conditional U-Net (`book`, `UNetCond`) in PyTorch.

Epsilon prediction on 1x28x28 images in [0, 1], ten labels, t in 1..1000 passed as it is.

    pos(t)_i = sin(t / 10000^(i/E)) for even i, cos(t / 10000^(i/E)) for odd i     (the exponent is i itself)
    v        = pos(t) + label_emb[y]                                                (nothing added without a label)
    Block    = x + mlp(v)[:, :, None, None], then twice: Conv 3x3, BatchNorm2d, ReLU

The widths follow from `base` (64 in the textbook): base, 2 base, 4 base. State-dict keys:
{down1,down2,bot1,up2,up1}.{convs.{0,1,3,4},mlp.{0,2}}.*, out.*, label_emb.weight.
"""

from __future__ import annotations

import torch
from torch import nn


def position(t: torch.Tensor, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Encodes the timesteps `t` [N] as [N, dim]; evaluated in f64, then rounded to `dtype`."""
    index = torch.arange(dim, dtype=torch.float64, device=t.device)
    angle = t.to(torch.float64)[:, None] / 10000.0 ** (index / dim)
    return torch.where(index % 2 == 0, torch.sin(angle), torch.cos(angle)).to(dtype)


class Block(nn.Module):
    """Adds the projected condition to the input channels, then convolves twice."""

    def __init__(self, in_channels: int, out_channels: int, embed_dim: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.mlp = nn.Sequential(nn.Linear(embed_dim, in_channels), nn.ReLU(), nn.Linear(in_channels, in_channels))

    def forward(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.convs(x + self.mlp(v)[:, :, None, None])


class UNetCond(nn.Module):
    """The whole network. `labels` is None, or [N] with -1 where a sample has no condition."""

    def __init__(self, base: int = 64, embed_dim: int = 100, num_labels: int = 10, in_channels: int = 1):
        super().__init__()
        self.embed_dim = embed_dim
        self.down1 = Block(in_channels, base, embed_dim)
        self.down2 = Block(base, 2 * base, embed_dim)
        self.bot1 = Block(2 * base, 4 * base, embed_dim)
        self.up2 = Block(2 * base + 4 * base, 2 * base, embed_dim)
        self.up1 = Block(base + 2 * base, base, embed_dim)
        self.out = nn.Conv2d(base, in_channels, 1)
        self.label_emb = nn.Embedding(num_labels, embed_dim)
        self.maxpool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        v = position(t, self.embed_dim, x.dtype)
        if labels is not None:
            known = (labels >= 0)[:, None].to(x.dtype)
            v = v + known * self.label_emb(labels.clamp(min=0))
        skip1 = self.down1(x, v)
        skip2 = self.down2(self.maxpool(skip1), v)
        h = self.bot1(self.maxpool(skip2), v)
        h = self.up2(torch.cat([self.upsample(h), skip2], dim=1), v)
        h = self.up1(torch.cat([self.upsample(h), skip1], dim=1), v)
        return self.out(h)
