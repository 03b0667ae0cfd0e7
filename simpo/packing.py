"""Tokenised pairs -> one packed row (PackedBatch); the collator.

Shape letters: B pairs, T packed tokens, S scored tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from simpo.attention.layout import PackLayout, Segment, pair_segments
from simpo.batching import MicroBatch, StepSampler


class PackedBatch(TypedDict):
    """One micro-batch: for each pair prompt, chosen, rejected, back to back in one row, nothing padded.

    The last prompt position predicts two tokens (the first of each response), so scored tokens are named by explicit
    indices and nothing is shifted. Responses are scored in the order chosen_0, rejected_0, chosen_1, rejected_1, ...
    """

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T] 0..P+C-1 for prompt and chosen, then P..P+R-1 for rejected
    layout: PackLayout  # who sees whom
    source_positions: Tensor  # [S] where a scored token is predicted
    target_ids: Tensor  # [S] which token it is
    chosen_lengths: Tensor  # [B]
    rejected_lengths: Tensor  # [B]
    pair_weights: Tensor  # [B] 1, or 0 for a filler
    pair_index: Tensor  # [B] row of the pair in its dataset


def pack_pairs(
    pairs: Sequence[Mapping[str, Any]],
    *,
    pair_index: Sequence[int] | None = None,
    fillers: int = 0,
    prefix_sharing: bool = True,
) -> PackedBatch:
    """Pack tokenised pairs into one row.

    Args:
        pairs: B rows with `prompt_ids`, `chosen_ids`, `rejected_ids` (sequences of token ids, none empty).
        pair_index: [B] row of each pair in its dataset; 0..B-1 when None.
        fillers: how many pairs at the end count for nothing.
        prefix_sharing: store the prompt once for both responses; otherwise twice, as two rows would.

    Raises:
        ValueError: a prompt or response is empty.
    """
    ids: list[Any] = []
    positions: list[Any] = []
    sources: list[Any] = []
    targets: list[Any] = []
    segments: list[Segment] = []
    start = 0
    for number, pair in enumerate(pairs):
        prompt, chosen, rejected = (np.asarray(pair[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids"))
        p, c, r = len(prompt), len(chosen), len(rejected)
        if not (p and c and r):
            raise ValueError(
                f"pair {number} of the micro-batch has {p} prompt, {c} chosen and {r} rejected tokens; each must have "
                "at least one. Drop the row from the tokenised dataset"
            )
        segments += pair_segments(start, p, c, r, shared=prefix_sharing)
        middle, last_prompt = start + p + c, start + p - 1
        sources.append(np.arange(last_prompt, middle - 1))
        positions.append(np.arange(p + c))
        if prefix_sharing:
            ids += [prompt, chosen, rejected]
            positions.append(np.arange(p, p + r))
            sources += [[last_prompt], np.arange(middle, middle + r - 1)]
            start = middle + r
        else:
            ids += [prompt, chosen, prompt, rejected]
            positions.append(np.arange(p + r))
            sources.append(np.arange(middle + p - 1, middle + p + r - 1))
            start = middle + p + r
        targets += [chosen, rejected]
    index = range(len(pairs)) if pair_index is None else pair_index
    weights = torch.ones(len(pairs))
    weights[len(pairs) - fillers :] = 0
    return PackedBatch(
        input_ids=_long(ids)[None],
        position_ids=_long(positions)[None],
        layout=PackLayout.of(segments),
        source_positions=_long(sources),
        target_ids=_long(targets),
        chosen_lengths=torch.tensor([len(pair["chosen_ids"]) for pair in pairs]),
        rejected_lengths=torch.tensor([len(pair["rejected_ids"]) for pair in pairs]),
        pair_weights=weights,
        pair_index=torch.tensor(list(index)),
    )


class StepDataLoader(DataLoader[Any]):
    """A data loader that tells its sampler which epoch it is."""

    def set_epoch(self, epoch: int) -> None:
        """Called by transformers at the start of each epoch."""
        cast(StepSampler, self.batch_sampler).set_epoch(epoch)


def only_pack(packs: list[PackedBatch]) -> PackedBatch:
    """Collate for loaders whose items are single micro-batches, as in evaluation."""
    (pack,) = packs
    return pack


def packed_tokens(pairs: Any, *, prefix_sharing: bool = True) -> np.ndarray:
    """Tokens that each pair of a tokenised dataset takes in a pack: P + C + R, or 2P + C + R without sharing.

    Args:
        pairs: a `datasets.Dataset`, read column by column without decoding, or a sequence of rows.

    Returns:
        [N] int64.
    """
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    if isinstance(pairs, Dataset):
        tables = pairs.select_columns(list(keys)).with_format("arrow").iter(batch_size=10_000)
        lengths = [[pc.list_value_length(table[key]).to_numpy() for key in keys] for table in tables]
        columns = np.concatenate(lengths, axis=1) if lengths else np.zeros((3, 0))
    else:
        columns = np.array([[len(pair[key]) for pair in pairs] for key in keys])
    prompt, chosen, rejected = columns.astype(np.int64)
    return (1 if prefix_sharing else 2) * prompt + chosen + rejected


def _long(parts: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64, copy=False))


class PackedDataset(torch.utils.data.Dataset[PackedBatch]):
    """A tokenised dataset whose items are packed micro-batches, keyed by `MicroBatch`.

    Packing happens here, in the loader's workers, so that a batch sampler can yield all micro-batches of an optimizer
    step at once.
    """

    def __init__(self, pairs: Any, *, prefix_sharing: bool = True) -> None:
        self.pairs = pairs
        self.prefix_sharing = prefix_sharing

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __getitem__(self, micro_batch: MicroBatch) -> PackedBatch:
        """The pack of one micro-batch."""
        fetch_many = getattr(self.pairs, "__getitems__", None)  # datasets.Dataset reads many rows at once
        rows = [self.pairs[row] for row in micro_batch.pairs] if fetch_many is None else fetch_many(micro_batch.pairs)
        return pack_pairs(
            rows,
            pair_index=micro_batch.pairs,
            fillers=micro_batch.fillers,
            prefix_sharing=self.prefix_sharing,
        )
