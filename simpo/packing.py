"""Tokenised pairs -> one packed row (PackedBatch); the collator.

Shape letters: B pairs, T packed tokens, S scored tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from simpo.attention.layout import PackLayout, Segment, pair_segments
from simpo.batching import MicroBatch, StepSampler
from simpo.errors import DataError


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
    ref_chosen: NotRequired[Tensor]  # [B] log-prob of the response under the initial policy, where a run has them
    ref_rejected: NotRequired[Tensor]  # [B]
    mismatched: NotRequired["PackedBatch"]  # the prompts with a response of another pair each, as chosen, for KTO


def pack_pairs(
    pairs: Sequence[Mapping[str, Any]],
    *,
    pair_index: Sequence[int] | None = None,
    fillers: int = 0,
    prefix_sharing: bool = True,
) -> PackedBatch:
    """Pack tokenised pairs into one row.

    Args:
        pairs: B rows with `prompt_ids`, `chosen_ids`, `rejected_ids` (sequences of token ids). Of a row with one
            response the other is empty.
        pair_index: [B] row of each pair in its dataset; 0..B-1 when None.
        fillers: how many pairs at the end count for nothing.
        prefix_sharing: store the prompt once for both responses; otherwise twice, as two rows would.

    Raises:
        ValueError: a prompt is empty, or both responses are.
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
        if not (p and (c or r)):
            raise ValueError(
                f"pair {number} of the micro-batch has {p} prompt, {c} chosen and {r} rejected tokens; the prompt must "
                "have at least one, and so must a response. Drop the row from the tokenised dataset"
            )
        if not (c and r):  # one response: an ordinary sequence
            end = start + p + c + r
            segments.append(Segment(start, end, start, start))
            ids += [prompt, chosen, rejected]
            positions.append(np.arange(p + c + r))
            sources.append(np.arange(start + p - 1, end - 1))
            targets += [chosen, rejected]
            start = end
            continue
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
    prompt, chosen, rejected = token_counts(pairs)
    repeats = 1 if prefix_sharing else np.where((chosen > 0) & (rejected > 0), 2, 1)
    return repeats * prompt + chosen + rejected


def token_counts(pairs: Any) -> np.ndarray:
    """[3, N] int64: tokens of prompt, chosen and rejected of each pair of a tokenised dataset."""
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    if isinstance(pairs, Dataset):
        tables = pairs.select_columns(list(keys)).with_format("arrow").iter(batch_size=10_000)
        lengths = [[pc.list_value_length(table[key]).to_numpy() for key in keys] for table in tables]
        columns = np.concatenate(lengths, axis=1) if lengths else np.zeros((3, 0))
    else:
        columns = np.array([[len(pair[key]) for pair in pairs] for key in keys])
    return columns.astype(np.int64)


def _long(parts: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64, copy=False))


class PackedDataset(torch.utils.data.Dataset[PackedBatch]):
    """A tokenised dataset whose items are packed micro-batches, keyed by `MicroBatch`.

    Packing happens here, in the loader's workers, so that a batch sampler can yield all micro-batches of an optimizer
    step at once.

    Args:
        pairs: tokenised rows.
        prefix_sharing: store the prompt of a pair once.
        max_length: bound on a prompt with a response of another row.

    Attributes:
        references: [N] float32 for `ref_chosen` and `ref_rejected`, and for `ref_mismatched` where there are partners.
            May be filled in after loaders were made, until they are iterated.
        partners: [N] for each row the row whose response it is mismatched with; see `mismatched_rows`.
    """

    def __init__(self, pairs: Any, *, prefix_sharing: bool = True, max_length: int | None = None) -> None:
        self.pairs = pairs
        self.prefix_sharing = prefix_sharing
        self.max_length = max_length
        self.references: dict[str, np.ndarray] = {}
        self.partners: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __getitem__(self, micro_batch: MicroBatch) -> PackedBatch:
        """The pack of one micro-batch."""
        rows = self._rows(micro_batch.pairs)
        pack = self._pack(rows, micro_batch)
        at = list(micro_batch.pairs)
        for name in ("ref_chosen", "ref_rejected"):
            if name in self.references:
                pack[name] = torch.from_numpy(self.references[name][at])  # type: ignore[literal-required]
        if self.partners is not None:
            others = self._rows(self.partners[at].tolist())
            pairs = [
                _mismatched(row, other, first=index % 2 == 0, max_length=self.max_length)
                for index, row, other in zip(at, rows, others, strict=True)
            ]
            pack["mismatched"] = self._pack(pairs, micro_batch)
            if "ref_mismatched" in self.references:
                pack["mismatched"]["ref_chosen"] = torch.from_numpy(self.references["ref_mismatched"][at])
        return pack

    def _rows(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        fetch_many = getattr(self.pairs, "__getitems__", None)  # datasets.Dataset reads many rows at once
        return [self.pairs[row] for row in numbers] if fetch_many is None else fetch_many(numbers)

    def _pack(self, rows: Sequence[Mapping[str, Any]], micro_batch: MicroBatch) -> PackedBatch:
        return pack_pairs(
            rows,
            pair_index=micro_batch.pairs,
            fillers=micro_batch.fillers,
            prefix_sharing=self.prefix_sharing,
        )


def _mismatched(
    row: Mapping[str, Any], other: Mapping[str, Any], *, first: bool, max_length: int | None
) -> dict[str, Any]:
    """The prompt of one row with a response of another, the chosen one if `first` and there is one."""
    sides = ("chosen_ids", "rejected_ids") if first else ("rejected_ids", "chosen_ids")
    response = next(other[side] for side in sides if len(other[side]))
    prompt = row["prompt_ids"]
    room = None if max_length is None else max(1, max_length - len(prompt))
    return {"prompt_ids": prompt, "chosen_ids": response[:room], "rejected_ids": []}


def mismatched_rows(pairs: Any, seed: int) -> np.ndarray:
    """For each row another one with another prompt, each of them used once where prompts differ.

    Rows are put into a random circle; each takes the next one, or the first after it whose prompt is another.

    Args:
        pairs: tokenised rows.
        seed: of the circle.

    Returns:
        [N] row numbers.

    Raises:
        DataError: all prompts are the same.
    """
    prompts = (
        [hash(tuple(ids)) for ids in pairs["prompt_ids"]]
        if isinstance(pairs, Dataset)
        else [hash(tuple(pair["prompt_ids"])) for pair in pairs]
    )
    if len(set(prompts)) < 2:
        raise DataError("KTO estimates a KL from prompts with responses of others, so it needs two different prompts")
    circle = np.random.default_rng(seed).permutation(len(prompts))
    partners = np.empty(len(prompts), dtype=np.int64)
    for place, row in enumerate(circle):
        step = 1
        while prompts[circle[(place + step) % len(circle)]] == prompts[row]:
            step += 1
        partners[row] = circle[(place + step) % len(circle)]
    return partners
