"""Random packs for attention kernels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from simpo.attention.layout import PackLayout, pair_segments


class Row(NamedTuple):
    """Queries, keys and values of one packed row, and its layout."""

    query: Tensor
    key: Tensor
    value: Tensor
    layout: PackLayout

    def leaves(self) -> list[Tensor]:
        """Copies of the three that collect gradients."""
        return [states.clone().requires_grad_() for states in self[:3]]


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    """make_row([(prompt, chosen, rejected), ...], shared=..., heads=(4, 2), size=16) -> a random row."""

    def make(
        lengths: list[tuple[int, int, int]],
        *,
        shared: bool = True,
        heads: tuple[int, int] = (4, 2),
        size: int = 16,
        **options: Any,
    ) -> Row:
        segments, total = [], 0
        for p, c, r in lengths:
            segments += pair_segments(total, p, c, r, shared=shared)
            total = segments[-1].query_end
        generator = torch.Generator().manual_seed(0)
        states = [torch.randn(1, total, n, size, generator=generator).to(**options) for n in (heads[0], *heads[1:] * 2)]
        # models hand over views of [1, T, heads, size]
        return Row(*(part.transpose(1, 2) for part in states), PackLayout.of(segments).to(states[0].device))  # type: ignore[arg-type]

    return make
