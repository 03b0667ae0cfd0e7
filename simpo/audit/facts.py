"""What the token ids of every pair say, as arrays over pairs [N]; no loop over tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from datasets import Dataset

from simpo.audit.frame import Frame
from simpo.data.schema import TOKEN_COLUMNS

_BATCH = 5_000  # pairs: some millions of tokens, which stay in the processor's reach


class TokenFacts(NamedTuple):
    """One entry a pair, in the order of the pairs [N].

    Fields:
        row: the pair's row in its set.
        prompt, chosen, rejected: lengths in tokens.
        leading_bos: BOS tokens at the start: 0, 1, or 2 for two and more.
        later_bos: BOS tokens anywhere else, unless BOS also ends turns.
        chosen_ended, rejected_ended: whether the response ends with an end token.
        chosen_special, rejected_special: special tokens within the answer, less what the template writes around it.
        openings: how often what the template writes before an answer is scored, beyond the frame's own header.
        unknown: tokens for what the vocabulary cannot say.
        outside: ids that the vocabulary does not have.
    """

    row: np.ndarray
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    leading_bos: np.ndarray
    later_bos: np.ndarray
    chosen_ended: np.ndarray
    rejected_ended: np.ndarray
    chosen_special: np.ndarray
    rejected_special: np.ndarray
    openings: np.ndarray
    unknown: np.ndarray
    outside: np.ndarray


class _Lists(NamedTuple):
    """A column of lists: all values in one array, and where each list begins and ends."""

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.ends - self.starts

    def count_in(self, mask: np.ndarray, skip: int = 0, leave: int = 0) -> np.ndarray:
        """How often `mask`, over values, is true in each list, less its first `skip` and last `leave` entries."""
        total = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
        starts = np.minimum(self.starts + skip, self.ends)
        return total[np.maximum(self.ends - leave, starts)] - total[starts]

    def count_run(self, run: tuple[int, ...], skip: int = 0) -> np.ndarray:
        """How often these values stand in a row in each list, behind its first `skip` entries; an empty run never."""
        if not run or len(self.values) < len(run):
            return np.zeros_like(self.starts)
        found = np.ones(len(self.values), dtype=bool)
        for offset, value in enumerate(run):
            found[: len(found) - offset] &= self.values[offset:] == value
        return self.count_in(found, skip, len(run) - 1)  # one that ends in the next list is none

    def at(self, offset: int) -> np.ndarray:
        """The entry at an offset from each list's start, or end where negative; -1 where the list is shorter."""
        where = self.starts + offset if offset >= 0 else self.ends + offset
        inside = (where >= self.starts) & (where < self.ends)
        values = np.concatenate([self.values, [-1]])
        return values[np.where(inside, where, len(self.values))]


def token_facts(pairs: Dataset, frame: Frame) -> TokenFacts:
    """Read all pairs in batches.

    Args:
        pairs: token ids; with a column `row`, or the pair's own position counts as its row.
        frame: what stands around every answer.
    """
    columns = [*TOKEN_COLUMNS, *(["row"] if "row" in pairs.column_names else [])]
    tables = pairs.select_columns(columns).with_format("arrow").iter(batch_size=_BATCH)
    batches = [_facts_of(table, frame) for table in tables]
    facts = TokenFacts(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))
    return facts if "row" in pairs.column_names else facts._replace(row=np.arange(len(pairs)))


def _facts_of(table: Any, frame: Frame) -> TokenFacts:
    prompt, chosen, rejected = sides = [_lists(table[column]) for column in TOKEN_COLUMNS]
    size = len(frame.special)
    valid = [(side.values >= 0) & (side.values < size) for side in sides]
    special = [ok & frame.special[np.where(ok, side.values, 0)] for side, ok in zip(sides, valid, strict=True)]
    # no id is -2: what the tokenizer does not have is found nowhere
    bos, unknown = (-2 if token is None else token for token in (frame.bos, frame.unknown))
    leading = (prompt.at(0) == bos).astype(np.int64)
    leading += (leading == 1) & (prompt.at(1) == bos)
    everywhere = _total(side.count_in(side.values == bos) for side in sides)
    ends = np.array(sorted(frame.ends))
    around = frame.header, frame.tail
    return TokenFacts(
        row=table["row"].to_numpy() if "row" in table.column_names else np.zeros(len(prompt.starts), dtype=np.int64),
        prompt=prompt.lengths,
        chosen=chosen.lengths,
        rejected=rejected.lengths,
        leading_bos=leading,
        later_bos=np.zeros_like(leading) if bos in frame.ends else everywhere - leading,
        # a row of one response has nothing to end on its other side
        chosen_ended=np.isin(chosen.at(-1), ends) | (chosen.lengths == 0),
        rejected_ended=np.isin(rejected.at(-1), ends) | (rejected.lengths == 0),
        chosen_special=_answer_specials(chosen, special[1], ends, *around),
        rejected_special=_answer_specials(rejected, special[2], ends, *around),
        openings=_total(side.count_run(frame.opening_ids, frame.header) for side in (chosen, rejected)),
        unknown=_total(side.count_in(side.values == unknown) for side in sides),
        outside=_total(side.count_in(~ok) for side, ok in zip(sides, valid, strict=True)),
    )


def _total(counts: Iterable[np.ndarray]) -> np.ndarray:
    return np.sum(list(counts), axis=0)


def _answer_specials(side: _Lists, special: np.ndarray, ends: np.ndarray, header: int, tail: int) -> np.ndarray:
    """Special tokens between what the template writes before and after an answer; one that was cut has no tail."""
    whole = np.isin(side.at(-1), ends)
    return np.where(whole, side.count_in(special, header, tail), side.count_in(special, header))


def _lists(column: Any) -> _Lists:
    array = column.combine_chunks()
    ends = np.cumsum(pc.list_value_length(array).to_numpy(zero_copy_only=False), dtype=np.int64)
    return _Lists(array.flatten().to_numpy(zero_copy_only=False), np.concatenate([[0], ends[:-1]]), ends)
