"""The chunked head against full logits, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from simpo import logps as logps_module
from simpo.logps import response_logps, token_logps, vocabulary_chunk


def _plain(hidden, weight, targets, bias=None, softcap=None, logit_scale=1.0):
    logits = F.linear(hidden, weight, bias).float() * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize("softcap,scale,with_bias", [(None, 1.0, False), (4.0, 1.0, False), (None, 0.25, True)])
def test_chunked_equals_full_logits(monkeypatch, softcap, scale, with_bias) -> None:
    monkeypatch.setitem(logps_module._TILE_ELEMENTS, "cpu", 1)  # many chunks: 1024 columns at a time
    torch.manual_seed(0)
    vocabulary, rows, width = 2500, 7, 16
    results = []
    for function in (token_logps, _plain):
        torch.manual_seed(1)
        hidden = torch.randn(rows, width, requires_grad=True)
        weight = torch.randn(vocabulary, width, requires_grad=True)
        bias = torch.randn(vocabulary, requires_grad=True) if with_bias else None
        targets = torch.randint(0, vocabulary, (rows,))
        out = function(hidden, weight, targets, bias, softcap=softcap, logit_scale=scale)
        (out * torch.linspace(-1, 1, rows)).sum().backward()
        results.append((out, hidden.grad, weight.grad, *((bias.grad,) if with_bias else ())))
    for chunked, full in zip(*results, strict=True):
        torch.testing.assert_close(chunked, full, atol=1e-5, rtol=1e-5)


def test_results_are_float32_under_bfloat16() -> None:
    hidden, weight = torch.randn(5, 16).bfloat16(), torch.randn(300, 16).bfloat16()
    assert token_logps(hidden, weight, torch.arange(5)).dtype == torch.float32


def test_frozen_head_costs_no_weight_gradient() -> None:
    hidden, weight = torch.randn(5, 16, requires_grad=True), torch.randn(300, 16)
    token_logps(hidden, weight, torch.arange(5)).sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_chunk_width_is_bounded_by_the_tile() -> None:
    assert vocabulary_chunk(10**6, 256_000, "cuda") * 4096 <= 2**27
    assert vocabulary_chunk(1, 500, "cpu") == 500
    assert vocabulary_chunk(10**6, 256_000, "cpu") >= 1024


def test_response_sums_and_their_gradient() -> None:
    logps = torch.arange(1.0, 7.0, requires_grad=True)
    sums = response_logps(logps, torch.tensor([1, 3, 2]))
    assert sums.tolist() == [1.0, 9.0, 11.0]
    (sums * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [1.0, 10.0, 10.0, 10.0, 100.0, 100.0]
