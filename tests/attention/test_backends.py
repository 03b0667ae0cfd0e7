"""Which backend is taken, and that each computes what SDPA by segment computes."""

import inspect
import itertools
import re
import types
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen
from torch.nn.attention.flex_attention import flex_attention

from simpo.attention import backends, flex, varlen
from simpo.attention.backends import Demand, attend, choose, objection
from simpo.attention.flex import BLOCK, block_mask, flex_segment_attention
from simpo.attention.layout import PackLayout, pair_segments
from simpo.attention.sdpa import segment_attention
from simpo.errors import ModelError

BF16 = Demand("cuda", torch.bfloat16, 128, 128)
CPU = Demand("cpu", torch.float32, 128, 128)
LENGTHS = [(70, 200, 45), (1, 6, 1), (300, 20, 170), (5, 129, 128), (2, 1, 2)]  # segments that cross blocks of 128


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """machine(flash=version or None): a CUDA machine with triton, as far as the choice can tell."""

    def make(flash: int | None = None) -> None:
        def find_flash(softcap: bool, head_size: int) -> tuple[int, Any]:
            if flash is None or (flash == 4 and softcap):
                raise ImportError("no flash-attn that serves this was found")
            return flash, None

        monkeypatch.setattr(backends, "find_flash", find_flash)
        monkeypatch.setattr(backends, "find_spec", lambda name: True)
        choose.cache_clear()

    yield make
    choose.cache_clear()


@pytest.mark.parametrize(
    ("flash", "demand", "expected"),
    [
        (None, BF16, "varlen"),
        (2, BF16, "varlen"),  # torch ships the same kernels
        (3, BF16, "flash"),
        (4, BF16, "flash"),
        (None, BF16._replace(softcap=True), "flex"),
        (2, BF16._replace(softcap=True), "flash"),
        (4, BF16._replace(softcap=True), "flex"),
        (3, BF16._replace(dtype=torch.float32), "sdpa"),
        (None, BF16._replace(softcap=True, head_size=8, value_size=8), "sdpa"),
        (3, BF16._replace(head_size=512, value_size=512), "flex"),
        (3, BF16._replace(value_size=64), "flex"),
        (3, BF16._replace(dropout=True), "sdpa"),
        (3, CPU, "sdpa"),
        (3, CPU._replace(device="mps", dtype=torch.bfloat16), "sdpa"),
    ],
)
def test_auto(machine, flash, demand, expected) -> None:
    machine(flash)
    assert choose("auto", demand) == expected


@pytest.mark.parametrize(
    ("backend", "demand", "reason"),
    [
        ("varlen", BF16._replace(softcap=True), "soft cap"),
        ("varlen", BF16._replace(dtype=torch.float32), "bfloat16 and float16 only"),
        ("flash", BF16, "no flash-attn that serves this was found"),
        ("flex", BF16._replace(head_size=8, value_size=8), "head sizes from 16 on"),
        ("flash", BF16._replace(head_size=257, value_size=257), "head sizes up to 256"),
        ("flash", BF16._replace(value_size=64), "one size, not 128 for keys and 64 for values"),
        ("flex", BF16._replace(dropout=True), "dropout"),
        ("flex", CPU, "CUDA only"),
        ("xformers", CPU, "unknown; write auto, flash, varlen, flex, sdpa"),
    ],
)
def test_a_backend_that_cannot_serve_is_an_error_with_the_reason(machine, backend, demand, reason) -> None:
    machine()
    with pytest.raises(ModelError, match=reason):
        choose(backend, demand)


def test_the_error_names_what_would_be_taken(machine) -> None:
    machine()
    with pytest.raises(ModelError, match=re.escape("(asked for: cuda, bfloat16, head size 128, softcap)") + ".*flex"):
        choose("varlen", BF16._replace(softcap=True))


def test_the_choice_is_logged(machine, caplog) -> None:
    machine()
    with caplog.at_level("INFO", logger=backends.__name__):
        choose("auto", BF16)
    assert "attention: torch varlen_attn (cuda, bfloat16, head size 128)" in caplog.text


def _bottom_right_kernel(q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, **options: Any) -> Tensor:
    """Variable-length attention from the kernels' documentation, sequence by sequence."""
    left, right = options["window_size"]
    outputs = []
    for (a, b), (c, d) in zip(_runs(starts_q), _runs(starts_k), strict=True):
        queries, keys, values = q[a:b], k[c:d], v[c:d]
        groups = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        scores = torch.einsum("qhe,khe->hqk", queries, keys) * options["scale"]
        if options.get("softcap"):
            scores = options["softcap"] * torch.tanh(scores / options["softcap"])
        at = torch.arange(d - c - (b - a), d - c)[:, None] - torch.arange(d - c)[None, :]
        outside = at < -right if left < 0 else (at < -right) | (at > left)
        outputs.append(torch.einsum("hqk,khe->qhe", scores.masked_fill(outside, -torch.inf).softmax(-1), values))
    return torch.cat(outputs)


def _runs(starts: Tensor) -> list[tuple[int, int]]:
    return list(itertools.pairwise(starts.tolist()))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("window", [None, 1, 64, 10_000])
@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_what_the_kernels_are_handed(make_row, monkeypatch, backend, window, shared) -> None:
    """Starts, gathered keys, window and scale, read as the kernels' documentation says."""

    def torch_kernel(q, k, v, starts_q, starts_k, longest_q, longest_k, *, scale, window_size, enable_gqa=False):
        assert enable_gqa and longest_q == starts_q.diff().max() and longest_k == starts_k.diff().max()
        return _bottom_right_kernel(q, k, v, starts_q, starts_k, scale=scale, window_size=window_size)

    def flash_kernel(
        q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size, softcap
    ):
        assert causal and max_seqlen_q == cu_seqlens_q.diff().max() and max_seqlen_k == cu_seqlens_k.diff().max()
        options = {"scale": softmax_scale, "window_size": window_size, "softcap": softcap}
        return _bottom_right_kernel(q, k, v, cu_seqlens_q, cu_seqlens_k, **options), None

    known = set(inspect.signature(torch_varlen.varlen_attn).parameters)
    assert {"scale", "window_size"} <= known  # what the kernel below is called with
    monkeypatch.setattr(torch_varlen, "varlen_attn", torch_kernel)
    monkeypatch.setattr(varlen, "find_flash", lambda softcap, head_size: (3, flash_kernel))
    row = make_row(LENGTHS, shared=shared)
    kernel = {"varlen": varlen.varlen_attention, "flash": varlen.flash_attention}[backend]
    options = {"scale": 0.3, "window": window, "softcap": 2.0 if backend == "flash" else None}
    results = []
    for attention in (kernel, segment_attention):
        states = row.leaves()
        out = attention(*states, row.layout, **options)
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in states)])
    for mine, expected in zip(*results, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


def test_older_torch_gets_one_key_head_for_each_query_head(make_row, monkeypatch) -> None:
    def older_kernel(q, k, v, starts_q, starts_k, longest_q, longest_k, *, scale, window_size):
        assert q.shape[1] == k.shape[1] == v.shape[1] == 4
        return _bottom_right_kernel(q, k, v, starts_q, starts_k, scale=scale, window_size=window_size)

    monkeypatch.setattr(torch_varlen, "varlen_attn", older_kernel)
    row = make_row(LENGTHS)
    torch.testing.assert_close(varlen.varlen_attention(*row, scale=0.3), segment_attention(*row, scale=0.3))


@pytest.mark.parametrize(
    ("capability", "softcap", "head_size", "expected"),
    [(8, False, 128, 2), (9, False, 128, 3), (9, True, 256, 3), (10, False, 128, 4), (10, True, 128, 2),
     (10, False, 256, 2), (12, False, 128, 2)],
)  # fmt: skip
def test_each_gpu_gets_a_flash_version_whose_backward_serves_it(
    monkeypatch, capability, softcap, head_size, expected
) -> None:
    module = types.SimpleNamespace(flash_attn_varlen_func=lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    monkeypatch.setattr(varlen, "import_module", lambda name: module)
    monkeypatch.setattr(varlen.metadata, "version", lambda name: "4.0")
    assert varlen.find_flash.__wrapped__(softcap, head_size)[0] == expected


def test_kernels_get_autocast_types(make_row) -> None:
    row = make_row([(3, 2, 2)])
    with torch.autocast("cpu", torch.bfloat16):
        q, k, v = varlen.kernel_inputs(row.query, row.key, row.value.bfloat16(), row.layout)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert k.shape == (3 + 2 + 3 + 2, 2, 16)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("window", [None, 1, 64, 150])
@pytest.mark.parametrize("softcap", [None, 2.0])
@torch.no_grad()
def test_flex_values(make_row, shared, window, softcap) -> None:
    row = make_row(LENGTHS, shared=shared)
    options = {"scale": 0.3, "window": window, "softcap": softcap}
    expected = segment_attention(*row, **options)
    torch.testing.assert_close(flex_segment_attention(*row, **options), expected, atol=1e-5, rtol=1e-5)
    assert len(row.layout.cache) == 1  # one block mask for all layers of a kind


@torch.no_grad()
def test_compiled_flex_takes_every_length_window_and_cap(make_row, monkeypatch) -> None:
    """As on a GPU, but for the code generator; a new length, window or soft cap is not compiled for ever."""
    compiled = torch.compile(flex_attention, dynamic=True, backend="aot_eager")
    monkeypatch.setattr(flex, "_kernel", lambda device: compiled)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for size, window, softcap in itertools.product((1, 3, 7, 2, 5), (None, 64, 150), (None, 2.0, 30.0)):
            row = make_row(LENGTHS[:size] * 2)
            options = {"scale": 0.3, "window": window, "softcap": softcap}
            expected = segment_attention(*row, **options)
            torch.testing.assert_close(flex_segment_attention(*row, **options), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 64])
def test_flex_visits_the_blocks_that_are_seen_and_no_others(window) -> None:
    """Long pairs, so that most blocks hold nothing visible."""
    segments = [*pair_segments(0, 700, 300, 500, shared=True), *pair_segments(1500, 40, 900, 160, shared=True)]
    layout = PackLayout.of(segments)
    mask = block_mask(layout, window, torch.device("cpu"))
    size = mask.seq_lengths[0]
    rows = torch.arange(size)
    dense = mask.mask_mod(torch.tensor(0), torch.tensor(0), rows[:, None], rows[None, :])
    needed = dense.view(size // BLOCK, BLOCK, size // BLOCK, BLOCK).any(3).any(1)
    assert torch.equal(mask.to_dense()[0, 0].bool(), needed)
    assert needed.float().mean() < 0.5


def test_attend_takes_a_backend_by_name(make_row) -> None:
    row = make_row([(3, 2, 2)])
    torch.testing.assert_close(attend(*row, backend="sdpa"), segment_attention(*row))
    with pytest.raises(ModelError, match="attn_backend: varlen runs on CUDA only"):
        attend(*row, backend="varlen")


GPU_CASES = [
    ("varlen", None, None),
    ("varlen", 64, None),
    ("flash", None, None),
    ("flash", 64, None),
    ("flash", 64, 20.0),
    ("flex", None, None),
    ("flex", 64, 20.0),
    ("flex", None, 20.0),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize(("backend", "window", "softcap"), GPU_CASES)
def test_cuda_kernels_equal_sdpa(make_row, backend, window, softcap, size, shared, dtype) -> None:
    """Values and gradients in 16 bit, against SDPA by segment in float32 on the same numbers."""
    demand = Demand("cuda", dtype, size, size, softcap is not None)
    why = objection(backend, demand)
    if why is not None:
        pytest.skip(f"{backend} {why}")
    row = make_row(LENGTHS, shared=shared, size=size, heads=(8, 2), device="cuda", dtype=dtype)
    results = []
    exact = [states.float().requires_grad_() for states in row[:3]]
    for name, states in ((backend, row.leaves()), ("sdpa", exact)):
        out = attend(*states, row.layout, backend=name, window=window, softcap=softcap)
        (out * torch.arange(out.numel(), device="cuda").view_as(out).cos().to(out.dtype)).sum().backward()
        results.append([out.detach().float(), *(leaf.grad.float() for leaf in states)])
    for mine, expected in zip(*results, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(mine / scale, expected / scale, atol=0.02, rtol=0)
