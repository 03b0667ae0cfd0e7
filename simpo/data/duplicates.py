"""Which rows say the same as an earlier one: exactly, or nearly.

Rows are compared by hashes of 8 bytes, so a million rows need some megabytes, whatever their texts weigh.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Value

from simpo.data.schema import CONTENT_KEYS, Message, Pair, normalise

Ints = np.ndarray[Any, np.dtype[np.int64]]

_MORE_KEYS = [key for key in CONTENT_KEYS if key not in ("role", "content")]
_SOURCES = ("schema.py", "duplicates.py", "minhash.py")
_FEATURES = Features({"prompt": Value("int64"), "pair": Value("int64")})


class RowKeys(NamedTuple):
    """Hashes [N] of the prompts, and of prompt with both answers; 0 for rows that make no pair."""

    prompt: Ints
    pair: Ints


def row_keys(data: Dataset, num_proc: int | None = None) -> RowKeys:
    """What makes two prompts, and two pairs, the same.

    Prompts are the same where roles and texts are, whatever their white space and their Unicode form; answers where
    their texts are, without white space around them. `tools` and `chat_template_kwargs` belong to a pair.

    Args:
        data: raw or tokenised rows.
        num_proc: processes to work in; None for this one.
    """
    return compared(data, _keys, num_proc)


def compared(
    data: Dataset, keys: Callable[[Mapping[str, Any]], tuple[int, int]], num_proc: int | None, *sources: str
) -> RowKeys:
    """The keys of all rows.

    Args:
        data: rows.
        keys: hashes of a row's prompt and of the whole row, by `hash_of`; 0 for rows that cannot be read.
        num_proc: processes to work in; None for this one.
        sources: files of this folder whose code makes the keys, beside this one and what it uses.
    """
    keyed = data.map(
        _key_batch,
        batched=True,
        fn_kwargs={"keys": keys},
        remove_columns=data.column_names,
        features=_FEATURES,
        num_proc=num_proc if num_proc and num_proc > 1 else None,
        new_fingerprint=compared_name(data, "keys", *sources),
        desc="Comparing rows",
    )
    return RowKeys(*(keyed.data[name].to_numpy() for name in _FEATURES))


def compared_name(data: Dataset, what: str, *sources: str) -> str:
    """Names a result in the cache by its rows and by the code: `datasets` takes a changed function for the same."""
    code = [(Path(__file__).parent / name).read_text(encoding="utf-8") for name in (*_SOURCES, *sources)]
    return hashlib.sha256(json.dumps([data._fingerprint, what, code]).encode()).hexdigest()[:32]


def exact_duplicates(data: Dataset, num_proc: int | None = None) -> Ints:
    """For each row the first row with the same prompt and the same answers; -1 where there is no earlier one."""
    return first_with_key(row_keys(data, num_proc).pair)


def first_with_key(keys: Ints) -> Ints:
    """For each row the first row of the same key; -1 where it is the first, or has no key (0)."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    earlier = first[inverse].astype(np.int64)
    earlier[(keys == 0) | (earlier == np.arange(len(keys)))] = -1
    return earlier


def _key_batch(
    batch: Mapping[str, list[Any]], keys: Callable[[Mapping[str, Any]], tuple[int, int]]
) -> dict[str, list[int]]:
    found = [keys(dict(zip(batch, row, strict=True))) for row in zip(*batch.values(), strict=True)]
    return {"prompt": [prompt for prompt, _ in found], "pair": [whole for _, whole in found]}


def _keys(row: Mapping[str, Any]) -> tuple[int, int]:
    if "prompt_ids" in row:
        return hash_of(row["prompt_ids"]), hash_of([row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]])
    pair = normalise(row, unpaired=True)
    if not isinstance(pair, Pair):
        return 0, 0
    prompt, chosen, rejected = (
        [_turn(message) for message in messages_of(part, role)]
        for part, role in ((pair.prompt, "user"), (pair.chosen, "assistant"), (pair.rejected, "assistant"))
    )
    prompt = [(role, " ".join(text.split()), *more) for role, text, *more in prompt]
    return hash_of(prompt), hash_of([prompt, chosen, rejected, pair.arguments, *([pair.only] if pair.only else [])])


def messages_of(content: str | list[Message], role: str) -> list[Message]:
    """Messages of one part of a pair; a text is one message."""
    return [{"role": role, "content": content}] if isinstance(content, str) else content


def _turn(message: Message) -> tuple[Any, ...]:
    text = unicodedata.normalize("NFC", message.get("content") or "").strip()
    more = {key: message[key] for key in _MORE_KEYS if message.get(key)}
    return message["role"], text, *([more] if more else [])


def hash_of(value: Any) -> int:
    """8 bytes that are the same in every process; never 0."""
    text = json.dumps(value, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True) or 1
