"""Pairs that say nearly the same: MinHash signatures of word n-grams, and candidates by locality-sensitive hashing.

A row's signature holds the smallest value of each of P hash functions over the n-grams of its prompt, and of its
answers; two signatures agree in as many places as the two sets of n-grams overlap (Jaccard similarity J), give or take
sqrt(J (1 - J) / P). Rows that agree in a whole band of places are compared, all others never meet.
Source: Broder (1997), "On the resemblance and containment of documents"; Leskovec et al., "Mining of Massive Datasets",
chapter 3. The library for this, datasketch, needs scipy and takes four times as long.

N rows, P hash functions.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from simpo.data.duplicates import Ints, compared_name, hash_of, messages_of
from simpo.data.schema import CONTENT_KEYS, Pair, normalise

NEAR = 0.8
"""Similarity from which prompts, and answers, count as nearly the same."""

_WORDS_PER_GRAM = 3
_HASHES = 96
_ROWS_PER_BAND = 3  # of the prompt's signature, and as many of the answers'
_PARTS = ("prompt", "answers")
_SIGNATURE = List(Value("uint16"), length=_HASHES)
_FEATURES = Features({**dict.fromkeys(_PARTS, _SIGNATURE), "arguments": Value("int64")})
_COMPARED_AT_ONCE = 100_000

# letters and digits in runs; scripts without spaces by the character
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")

_RANDOM = np.random.default_rng(20240523)
_FACTORS = _RANDOM.integers(0, 2**31, _HASHES, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_OFFSETS = _RANDOM.integers(0, 2**32, _HASHES, dtype=np.uint32)
_PLACES = _RANDOM.integers(0, 2**63, _WORDS_PER_GRAM, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_NOTHING = np.iinfo(np.uint16).max


def near_duplicates(data: Dataset, threshold: float = NEAR, num_proc: int | None = None) -> Ints:
    """For each row an earlier row that is nearly the same; -1 where there is none.

    Nearly the same are rows whose prompts, and whose answers, each have at least this share of word n-grams in common.
    A row that differs only in which answer is preferred is not the same, nor one with other `tools` or
    `chat_template_kwargs`. Calls and thoughts count as text.

    Args:
        data: raw rows.
        threshold: share of n-grams in common, above 0.5 and at most 1.
        num_proc: processes to work in; None for this one.
    """
    signed = data.map(
        _sign_batch,
        batched=True,
        batch_size=100,  # its n-grams stay in the processor's cache
        remove_columns=data.column_names,
        features=_FEATURES,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        new_fingerprint=compared_name(data, "near"),
        desc="Comparing rows",
    )
    signatures = [signed.data[part].combine_chunks().flatten().to_numpy().reshape(-1, _HASHES) for part in _PARTS]
    arguments = signed.data["arguments"].to_numpy()
    usable = np.flatnonzero((signatures[0] != _NOTHING).any(axis=1))
    earlier = np.full(len(data), -1, dtype=np.int64)
    for first, later in _candidates([part[usable] for part in signatures]):
        for start in range(0, len(first), _COMPARED_AT_ONCE):
            left, right = (usable[rows[start : start + _COMPARED_AT_ONCE]] for rows in (first, later))
            alike = np.all([(part[left] == part[right]).mean(axis=1) >= threshold for part in signatures], axis=0)
            alike &= arguments[left] == arguments[right]
            left, right = left[alike], right[alike]
            # the earliest of those that were found
            np.minimum.at(earlier.view(np.uint64), right, left.astype(np.uint64))
    return earlier


def _candidates(signatures: list[np.ndarray[Any, Any]]) -> Iterator[tuple[Ints, Ints]]:
    """Rows that agree in a band: each with the first and with the one before it, as (earlier rows, later rows)."""
    for start in range(0, _HASHES, _ROWS_PER_BAND):
        band = np.concatenate([part[:, start : start + _ROWS_PER_BAND] for part in signatures], axis=1)
        keys = np.zeros(len(band), dtype=np.uint64)
        for column in band.T:
            keys = _mixed(keys + column.astype(np.uint64))
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order][:1]))
        heads = np.repeat(order[starts], np.diff(starts, append=len(order)))
        same = order != heads
        before = np.roll(order, 1)
        yield heads[same], order[same]
        yield before[same], order[same]


def _sign_batch(batch: Mapping[str, list[Any]]) -> dict[str, np.ndarray[Any, Any]]:
    hashes = _WordHashes()
    rows = (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))
    pairs = [normalise(row, unpaired=True) for row in rows]
    grams: dict[str, list[np.ndarray[Any, Any]]] = {part: [] for part in _PARTS}
    for pair in pairs:
        if isinstance(pair, Pair):
            grams["prompt"].append(_grams(_text(pair.prompt, "user"), hashes))
            sides = [_grams(_text(side, "assistant"), hashes) for side in (pair.chosen, pair.rejected)]
            grams["answers"].append(np.concatenate([sides[0], _mixed32(sides[1])]))
    signed = np.array([isinstance(pair, Pair) for pair in pairs])
    found = {part: np.full((len(pairs), _HASHES), _NOTHING, dtype=np.uint16) for part in _PARTS}
    for part in _PARTS:
        if grams[part]:
            found[part][signed] = _signatures(grams[part])
    # what must be the same: a good completion is no duplicate of a bad one
    given = [hash_of([pair.arguments, pair.only]) if isinstance(pair, Pair) else 0 for pair in pairs]
    return {**found, "arguments": np.array(given, dtype=np.int64)}


def _text(content: Any, role: str) -> str:
    said = [message.get(key) or "" for message in messages_of(content, role) for key in CONTENT_KEYS if key != "role"]
    return "\n".join(part if isinstance(part, str) else json.dumps(part, default=str) for part in said)


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        # not `hash`, which is another one in each process
        value = self[word] = zlib.crc32(word.encode("utf-8", "replace"))
        return value


def _grams(text: str, hashes: _WordHashes) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Hashes of the word n-grams of a text; a shorter text is one."""
    words = _WORD.findall(text.lower()) or [text.strip()]
    words += [""] * (_WORDS_PER_GRAM - len(words))
    codes = np.fromiter(map(hashes.__getitem__, words), dtype=np.uint64, count=len(words))
    total = sum(codes[at : len(codes) - _WORDS_PER_GRAM + 1 + at] * _PLACES[at] for at in range(_WORDS_PER_GRAM))
    return (_mixed(np.asarray(total)) >> np.uint64(32)).astype(np.uint32)


def _signatures(grams: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """[N, P]: the low half of each smallest value, since the high half of all small values is 0."""
    starts = np.cumsum([0, *(len(row) for row in grams[:-1])])
    together = np.concatenate(grams)
    smallest = [
        np.minimum.reduceat(together * factor + offset, starts)
        for factor, offset in zip(_FACTORS, _OFFSETS, strict=True)
    ]
    return np.stack(smallest, axis=1).astype(np.uint16)


def _mixed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """64 bits in which each depends on all (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mixed32(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (_mixed(values.astype(np.uint64)) >> np.uint64(16)).astype(np.uint32)
