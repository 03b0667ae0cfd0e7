"""A pack's layout: host integers, and the same numbers as kernels take them."""

import torch

from simpo.attention.layout import PackLayout, pair_segments


def test_a_shared_prompt_is_gathered_for_the_rejected_response_only() -> None:
    layout = PackLayout.of([*pair_segments(0, 3, 2, 1, shared=True), *pair_segments(6, 1, 1, 2, shared=True)])
    assert layout.query_starts.tolist() == [0, 5, 6, 8, 10]
    assert layout.key_starts.tolist() == [0, 5, 9, 11, 14]
    assert layout.key_index is not None
    assert layout.key_index.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 6, 8, 9]
    assert (layout.longest_query, layout.longest_key) == (5, 5)
    assert layout.query_starts.dtype == layout.key_starts.dtype == torch.int32


def test_without_sharing_nothing_is_gathered() -> None:
    layout = PackLayout.of(pair_segments(0, 3, 2, 1, shared=False))
    assert layout.key_index is None
    assert layout.key_starts.tolist() == layout.query_starts.tolist() == [0, 5, 9]


def test_it_moves_as_a_tensor_does() -> None:
    layout = PackLayout.of(pair_segments(0, 3, 2, 1, shared=True))
    moved = layout.to("meta")
    assert moved.segments == layout.segments and moved.longest_key == layout.longest_key
    assert moved.table.device.type == moved.query_starts.device.type == "meta"
    assert moved.key_index is not None and moved.key_index.device.type == "meta"
