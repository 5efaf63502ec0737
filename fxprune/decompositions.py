"""Composite layers that torch.fx keeps closed, written out exactly in operators that have rules."""

from __future__ import annotations

__all__ = ["DECOMPOSITIONS"]

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def multihead_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention.forward`` for batched input without masks (Vaswani et al., 2017, arXiv:1706.03762).

    Raises:
        TypeError: A mask, a bias of keys and values or unbatched input is used: the layer then stays one opaque node.
    """
    if key_padding_mask is not None or attn_mask is not None or module.bias_k is not None or module.add_zero_attn:
        raise TypeError("attention with masks or added keys has no decomposition")
    if query.dim() != 3:
        raise TypeError("attention without a batch dimension has no decomposition")
    width, heads, bias = module.embed_dim, module.num_heads, module.in_proj_bias

    if module._qkv_same_embed_dim and query is key and key is value:
        q, k, v = F.linear(query, module.in_proj_weight, bias).chunk(3, -1)
    else:
        biases = bias.chunk(3) if bias is not None else (None, None, None)
        if module._qkv_same_embed_dim:
            weights = module.in_proj_weight.chunk(3)
        else:
            weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def split_heads(t: Tensor) -> Tensor:
        t = t.reshape(t.shape[0], t.shape[1], heads, width // heads)
        return t.transpose(1, 2) if module.batch_first else t.permute(1, 2, 0, 3)

    q, k, v = split_heads(q), split_heads(k), split_heads(v)
    scores = torch.matmul(q * (1.0 / math.sqrt(width // heads)), k.transpose(-2, -1))
    weights_ = F.dropout(F.softmax(scores, dim=-1), module.dropout, module.training)
    mixed = torch.matmul(weights_, v)
    mixed = mixed.transpose(1, 2).flatten(2) if module.batch_first else mixed.permute(2, 0, 1, 3).flatten(2)
    out = F.linear(mixed, module.out_proj.weight, module.out_proj.bias)
    if not need_weights:
        return out, None
    return out, weights_.mean(1) if average_attn_weights else weights_


DECOMPOSITIONS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: multihead_attention,
    nn.Unflatten: nn.Unflatten.forward,  # so that the sizes it holds stand in the graph
}
"""Exact decompositions by the class of the layer."""
