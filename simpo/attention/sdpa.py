"""Attention segment by segment with torch's SDPA: exact on any device, and what every other kernel is held to.

Shape letters: T packed tokens, N rows, H query heads, K key/value heads, E head size, q and k queries and keys.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from simpo.attention.layout import PackLayout, Segment, visible


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackLayout,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of one packed row, segment by segment.

    Exact on any device: torch's SDPA for each segment, or plain softmax where scores are soft-capped (Gemma-2).

    Args:
        query: [1, H, T, E].
        key, value: [1, K, T, E] with H a multiple of K; `value` may have its own head size.
        layout: who sees whom.
        scale: factor on the scores; None means 1 / sqrt(E).
        window: sliding window in positions, or None.
        softcap: soft cap on the scores, or None.
        dropout: probability, 0 in evaluation.

    Returns:
        [1, T, H, E] in the dtype of `value`.
    """
    outputs = []
    for segment in layout.segments:
        q = query[:, :, segment.query_start : segment.query_end]
        k, v = _segment_keys(key, segment), _segment_keys(value, segment)
        if softcap is None:
            attended = _sdpa(q, k, v, scale=scale, window=window, dropout=dropout)
        else:
            mask = visible(q.shape[2], k.shape[2], window, q.device)
            attended = softcapped_attention(q, k, v, mask, scale=scale, softcap=softcap, dropout=dropout)
        outputs.append(attended.transpose(1, 2))
    return torch.cat(outputs, dim=1)  # contiguous: some models call .view on it


def _segment_keys(states: Tensor, segment: Segment) -> Tensor:
    own = states[:, :, segment.query_start : segment.query_end]
    if segment.prompt_start == segment.prompt_end:
        return own
    return torch.cat((states[:, :, segment.prompt_start : segment.prompt_end], own), dim=2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, window: int | None, dropout: float) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    plain_causal = queries == keys and (window is None or keys <= window)
    if plain_causal:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal=True, scale=scale, enable_gqa=grouped)
    # With a mask, only CUDA's slow kernel takes grouped heads, so they are repeated.
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    mask = visible(queries, keys, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)


def softcapped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None,
    softcap: float,
    dropout: float = 0.0,
) -> Tensor:
    """Plain attention with soft-capped scores, softcap * tanh(scores / softcap); SDPA has no such cap.

    Args:
        query: [N, H, q, E]; key, value: [N, K, k, E].
        mask: boolean (True = visible) or additive, broadcast to [N, H, q, k]; None means causal.

    Returns:
        [N, H, q, E].
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * (scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = visible(query.shape[2], key.shape[2], None, query.device)
    if mask.dtype == torch.bool:  # the smallest number, not -inf: a padding row that sees nothing must not become NaN
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return F.dropout(weights, dropout, training=dropout > 0) @ value
