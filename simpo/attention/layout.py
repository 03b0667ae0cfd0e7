"""Who may see whom in a shared pack, stated once.

A pack is one row of T tokens. It is cut into segments, each a run of queries that sees, causally, one earlier run of
keys (the shared prompt) followed by itself:

    [ prompt chosen ]  sees  [ prompt chosen ]
    [ rejected ]       sees  [ prompt ] [ rejected ]

Within a segment the keys are contiguous in position, so index differences are position differences and the causal
mask is aligned at the bottom right.

Shape letters: T packed tokens, N segments, G gathered keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Segment(NamedTuple):
    """Queries [query_start, query_end) see keys [prompt_start, prompt_end) and, causally, themselves."""

    query_start: int
    query_end: int
    prompt_start: int
    prompt_end: int


def pair_segments(start: int, prompt: int, chosen: int, rejected: int, *, shared: bool) -> tuple[Segment, Segment]:
    """The two segments of a pair whose first token stands at `start`; without sharing the prompt stands twice."""
    split = start + prompt + chosen
    if shared:
        return Segment(start, split, start, start), Segment(split, split + rejected, start, start + prompt)
    return Segment(start, split, start, start), Segment(split, split + prompt + rejected, split, split)


def visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys] bool mask, causal and aligned at the bottom right; `window` bounds position[q] - position[k]."""
    position_q = torch.arange(keys - queries, keys, device=device)[:, None]
    position_k = torch.arange(keys, device=device)[None, :]
    mask = position_k <= position_q
    return mask if window is None else mask & (position_q - position_k < window)


@dataclass(frozen=True, eq=False)
class PackLayout:
    """The segments of a pack, in the forms that the kernels take. Built on the host; reading it never waits for a GPU.

    Fields:
        segments: N segments as plain integers; they cover all T queries, in order.
        table: [N, 4] int32, the same numbers.
        query_starts: [N + 1] int32, first query of each segment, then T.
        key_starts: [N + 1] int32, first gathered key of each segment, then G.
        key_index: [G] int64, the row of each gathered key; None where every segment sees itself only, so that the keys
            of the row already stand in order.
        longest_query, longest_key: most queries and most keys of a segment.
        cache: what a kernel derives from the layout once for all layers.
    """

    segments: tuple[Segment, ...]
    table: Tensor
    query_starts: Tensor
    key_starts: Tensor
    key_index: Tensor | None
    longest_query: int
    longest_key: int
    cache: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "PackLayout":
        """The layout of these segments.

        >>> PackLayout.of(pair_segments(0, 3, 2, 2, shared=True)).key_index.tolist()
        [0, 1, 2, 3, 4, 0, 1, 2, 5, 6]
        """
        table = np.array(segments, dtype=np.int32).reshape(-1, 4)
        queries = table[:, 1] - table[:, 0]
        keys = queries + table[:, 3] - table[:, 2]
        index = None
        if (keys != queries).any():
            runs = [np.arange(a, b) for s in segments for a, b in ((s.prompt_start, s.prompt_end), s[:2]) if b > a]
            index = torch.from_numpy(np.concatenate(runs))
        return cls(
            segments=tuple(segments),
            table=torch.from_numpy(table),
            query_starts=_starts(queries),
            key_starts=_starts(keys),
            key_index=index,
            longest_query=int(queries.max()),
            longest_key=int(keys.max()),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackLayout":
        """The same layout with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self, device: torch.device | str | None = None) -> "PackLayout":
        """The same layout in pinned host memory; called by torch's data loader."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, move: Callable[[Tensor], Tensor]) -> "PackLayout":
        return PackLayout(
            segments=self.segments,
            table=move(self.table),
            query_starts=move(self.query_starts),
            key_starts=move(self.key_starts),
            key_index=None if self.key_index is None else move(self.key_index),
            longest_query=self.longest_query,
            longest_key=self.longest_key,
        )


def _starts(lengths: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))
