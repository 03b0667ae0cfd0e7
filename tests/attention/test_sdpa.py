"""Segment attention against a dense mask written from the definition."""

import pytest
import torch

from simpo.attention.layout import PackLayout, pair_segments, visible
from simpo.attention.sdpa import segment_attention

LENGTHS = [(5, 3, 4), (1, 6, 1), (9, 2, 7), (2, 2, 1), (2, 1, 2)]  # the last two: windows of 3, one token more or none


def _dense(query, key, value, lengths, shared, window, softcap, scale):
    """Every token carries (pair, part, position); who sees whom is read off these labels."""
    labels = []
    for number, (p, c, r) in enumerate(lengths):
        labels += [(number, "p", i) for i in range(p)] + [(number, "c", p + i) for i in range(c)]
        if not shared:
            labels += [(number, "q", i) for i in range(p)]
        labels += [(number, "r", p + i) for i in range(r)]
    sees = {"p": "p", "c": "pc", "q": "q", "r": "pr" if shared else "qr"}
    size = len(labels)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for i, (pair, part, position) in enumerate(labels):
        for j, (other, other_part, other_position) in enumerate(labels):
            inside = window is None or position - other_position < window
            mask[i, j] = pair == other and other_part in sees[part] and other_position <= position and inside
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_segments_equal_the_dense_mask(shared, window, softcap) -> None:
    segments, total = [], 0
    for p, c, r in LENGTHS:
        segments += pair_segments(total, p, c, r, shared=shared)
        total += (p if shared else 2 * p) + c + r
    outputs, gradients = [], []
    for packed in (True, False):
        torch.manual_seed(0)
        q = torch.randn(1, 4, total, 8, requires_grad=True)
        k, v = torch.randn(1, 2, total, 8, requires_grad=True), torch.randn(1, 2, total, 8, requires_grad=True)
        if packed:
            out = segment_attention(q, k, v, PackLayout.of(segments), scale=0.3, window=window, softcap=softcap)
        else:
            out = _dense(q, k, v, LENGTHS, shared, window, softcap, 0.3)
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
        outputs.append(out)
        gradients.append((q.grad, k.grad, v.grad))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for packed_gradient, dense_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(packed_gradient, dense_gradient, atol=1e-5, rtol=1e-5)


def test_mask_is_aligned_at_the_bottom_right() -> None:
    assert visible(2, 4, None, torch.device("cpu")).tolist() == [[True, True, True, False], [True] * 4]
    assert visible(2, 4, 2, torch.device("cpu")).tolist() == [[False, True, True, False], [False, False, True, True]]
