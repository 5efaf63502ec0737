"""Attention: channels that are heads times a size per head, and products of two activations."""

from __future__ import annotations

__all__ = [
    "FusedAttention",
    "MlpMixer",
    "MultiheadAttentionNet",
    "SelfAttention",
    "VisionTransformer",
    "WindowAttention",
]

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.models.base import Network, conv_norm, pooled_head


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.scale = self.head_width**-0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class _FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.query(x).view(b, n, self.heads, -1).transpose(1, 2)
        k = self.key(x).view(b, n, self.heads, -1).transpose(1, 2)
        v = self.value(x).view(b, n, self.heads, -1).transpose(1, 2)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SelfAttention(Network):
    """Attention written out over pixels: one linear layer for queries, keys and values, and sizes written down.

    It has no norm over channels, so nothing in it is inexact. After Vaswani et al. 2017.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 32, stride=4, activation=nn.ReLU())
        self.attention = _Attention(32, heads=4)
        self.conv = conv_norm(32, 24, activation=nn.ReLU())
        self.head = pooled_head(24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens)
        return self.head(self.conv(tokens.transpose(1, 2).reshape(x.shape)))


class FusedAttention(Network):
    """``F.scaled_dot_product_attention``, whose default scale depends on the size per head that remains."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, stride=4, activation=nn.ReLU())
        self.attention = _FusedAttention(24, heads=3)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens)
        return self.classifier(tokens.mean(1))


class MultiheadAttentionNet(Network):
    """PyTorch's own composite layer on pixels, with a residual and a layer norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, stride=4, activation=nn.ReLU())
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).permute(0, 2, 1)
        tokens = self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return self.classifier(tokens.mean(dim=1))


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(Network):
    """Patches, a class token and position embeddings (Dosovitskiy et al. 2021), which lose channels too."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 32))
        self.positions = nn.Parameter(torch.randn(1, 17, 32) * 0.02)
        self.blocks = nn.Sequential(_TransformerBlock(32, 4), _TransformerBlock(32, 4))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class WindowAttention(Network):
    """Attention in 4x4 windows, shifted by ``roll``, with a bias for each head (Swin, Liu et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 24, stride=2, activation=nn.ReLU())
        self.qkv = nn.Linear(24, 72)
        self.position_bias = nn.Parameter(torch.zeros(1, 3, 16, 16))
        self.proj = nn.Linear(24, 24)
        self.conv = conv_norm(24, 32, activation=nn.ReLU())
        self.head = pooled_head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shifted = torch.roll(x.permute(0, 2, 3, 1), shifts=(-2, -2), dims=(1, 2))
        b, h, w, c = shifted.shape
        windows = shifted.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
        q, k, v = self.qkv(windows).reshape(-1, 16, 3, 3, 8).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * 8**-0.5 + self.position_bias).softmax(-1)
        windows = self.proj((weights @ v).transpose(1, 2).reshape(-1, 16, c))
        shifted = windows.view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + torch.roll(shifted, (2, 2), (1, 2)).permute(0, 3, 1, 2)
        return self.head(self.conv(x))


class MlpMixer(Network):
    """Linear layers over tokens and over channels in turn (Tolstikhin et al. 2021): two dimensions that lose units."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.norm1 = nn.LayerNorm(32)
        self.tokens = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.norm2 = nn.LayerNorm(32)
        self.channels = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(dim=1))
