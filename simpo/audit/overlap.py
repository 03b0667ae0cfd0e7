"""Prompts of evaluation sets that stand in training pairs, by n-grams of words as in GPT-3's analysis.

Source: Brown et al. 2020 (arXiv 2005.14165), appendix C. Words without case and punctuation; N is the 5th percentile of
the set's prompt lengths in words, at least 8 (shorter ones collide by chance) and at most 13; an n-gram that many
documents hold is a common phrase and does not count. Different here: a prompt of fewer than N words counts where it is
a whole training prompt.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from simpo.audit.texts import Texts, same_text
from simpo.data.sources import open_source
from simpo.errors import ConfigError, DataError

SHORTEST, LONGEST = 8, 13  # words of an n-gram
COMMON = 10  # an n-gram in more training prompts than this is a common phrase
# AlpacaEval: instruction; Arena-Hard: prompt, or turns; MT-Bench: turns; HumanEval: prompt; GSM8K: question.
_COLUMNS = ("prompt", "instruction", "question", "turns", "messages", "text")
_WORD = re.compile(r"\w+")


class Overlap(NamedTuple):
    """What of one evaluation set stands in the training pairs.

    Fields:
        name: of the evaluation set.
        prompts: how many it has.
        words: length of the n-grams.
        found: numbers of its prompts that share an n-gram with a training pair, or are a training prompt.
        pairs: positions of the training pairs that hold one.
        examples: up to five of (evaluation prompt, pair, where: prompt, chosen or rejected, the words).
    """

    name: str
    prompts: int
    words: int
    found: list[int]
    pairs: list[int]
    examples: list[tuple[int, int, str, str]]


def read_prompts(name: str, path: str) -> list[str]:
    """The prompts of an evaluation set.

    Args:
        name: of the set, for errors.
        path: a .txt file with a prompt a line, or a .jsonl, .json, .parquet or .csv file with a column prompt,
            instruction, question, turns, messages or text.

    Raises:
        ConfigError: there is no such file.
        DataError: it cannot be read, or holds no prompts.
    """
    where = f"--eval-prompts {name}={path}"
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{where}: no such file (looked for {file.absolute()}); write NAME=FILE")
    if file.suffix.lower() == ".txt":
        prompts = [line for line in _lines(file, where) if line.strip()]
    else:
        data = open_source(str(file))
        assert isinstance(data, Dataset)  # a file
        column = next((column for column in _COLUMNS if column in data.column_names), None)
        if column is None:
            raise DataError(
                f"{where}: no column {', '.join(_COLUMNS[:-1])} or {_COLUMNS[-1]} "
                f"(its columns: {', '.join(data.column_names)}); rename the prompts' column to prompt"
            )
        try:
            prompts = [prompt for prompt in map(_plain, data[column]) if prompt.strip()]
        except TypeError as error:
            raise DataError(
                f"{where}: column {column} holds {error}; prompts are texts, lists of turns or of messages"
            ) from None
    if not prompts:
        raise DataError(f"{where}: holds no prompts; write one a line, or one a row")
    return prompts


def _lines(file: Path, where: str) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is no UTF-8 text ({error.reason}); save the file as UTF-8") from None


def _plain(value: Any) -> str:
    """A prompt as text: of several turns all, of messages those of the user.

    Raises:
        TypeError: it is none; the message is its type's name.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return str(value.get("content", "")) if value.get("role", "user") == "user" else ""
    if value is not None and not isinstance(value, list):
        raise TypeError(type(value).__name__)
    return "\n".join(filter(None, map(_plain, value or [])))


def words_of(text: str) -> list[str]:
    """Words without case and punctuation.

    >>> words_of("Don't stop: it's 5 o'clock!")
    ['don', 't', 'stop', 'it', 's', '5', 'o', 'clock']
    """
    return _WORD.findall(text.casefold())


@dataclass
class OverlapSearch:
    """Looks for the prompts of one evaluation set in batches of training texts.

    Args:
        name: of the evaluation set.
        prompts: its prompts.
    """

    name: str
    prompts: Sequence[str]
    _pairs: int = 0
    _hits: list[tuple[int, int, int, str]] = field(default_factory=list)  # n-gram, pair, its prompt, where
    _whole: list[tuple[int, int]] = field(default_factory=list)  # evaluation prompt, pair

    def __post_init__(self) -> None:
        split = [words_of(prompt) for prompt in self.prompts]
        lengths = [len(words) for words in split]
        self.words = int(np.clip(np.percentile(lengths, 5), SHORTEST, LONGEST))
        self._numbers = {word: at for at, word in enumerate(dict.fromkeys(itertools.chain(*split)), start=1)}
        # random numbers for words make sums of products that differ for n-grams that differ; 0 is an unknown word
        self._codes = np.random.default_rng(0).integers(1, 2**63, len(self._numbers) + 1, dtype=np.uint64)
        self._short = {" ".join(words): at for at, words in enumerate(split) if len(words) < self.words}
        self._holders: dict[int, list[int]] = {}
        self._text: dict[int, str] = {}
        for at, words in enumerate(split):
            sums, starts = self._grams(words)
            for gram, start in zip(sums.tolist(), starts.tolist(), strict=True):
                self._holders.setdefault(gram, []).append(at)
                self._text[gram] = " ".join(words[start : start + self.words])
        self._known = np.array(sorted(self._holders), dtype=np.uint64)

    def add(self, batch: Iterable[Texts]) -> None:
        """Look through more pairs; they are counted on."""
        batch = list(batch)
        words: list[str] = []
        ends: list[int] = []
        for at, texts in enumerate(batch):
            question = words_of(texts.question)
            short = self._short.get(" ".join(question)) if len(question) < self.words else None
            if short is not None:
                self._whole.append((short, self._pairs + at))
            for part in (texts.prompt, texts.chosen, texts.rejected):
                words += words_of(part)
                words.append("")  # no n-gram crosses from one text into the next
                ends.append(len(words))
        sums, starts = self._grams(words)
        hits = np.isin(sums, self._known)
        texts_hit = np.searchsorted(ends, starts[hits], side="right")
        prompts = {at: hash(same_text(batch[at].prompt)) for at in np.unique(texts_hit // 3).tolist()}
        for gram, text in dict.fromkeys(zip(sums[hits].tolist(), texts_hit.tolist(), strict=True)):
            at, part = divmod(text, 3)
            where = ("prompt", "chosen", "rejected")[part]
            self._hits.append((gram, self._pairs + at, prompts[at], where))
        self._pairs += len(batch)

    def result(self) -> Overlap:
        """What was found in all pairs so far."""
        documents = Counter(gram for gram, _ in {(gram, prompt) for gram, _, prompt, _ in self._hits})
        rare = [hit for hit in self._hits if documents[hit[0]] <= COMMON]
        found = [(at, pair, where, self._text[gram]) for gram, pair, _, where in rare for at in self._holders[gram]]
        found += [(at, pair, "prompt", " ".join(words_of(self.prompts[at]))) for at, pair in self._whole]
        first: dict[int, tuple[int, int, str, str]] = {}
        for example in sorted(found, key=lambda example: example[:2]):
            first.setdefault(example[0], example)
        return Overlap(
            name=self.name,
            prompts=len(self.prompts),
            words=self.words,
            found=sorted(first),
            pairs=sorted({pair for _, pair, _, _ in found}),
            examples=[first[at] for at in sorted(first)[:5]],
        )

    def _grams(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """A number for each n-gram of known words, and where it starts."""
        numbers = map(self._numbers.get, words, itertools.repeat(0))
        ids = np.fromiter(numbers, dtype=np.int64, count=len(words))
        count = max(0, len(ids) - self.words + 1)
        unknown = np.concatenate([[0], np.cumsum(ids == 0)])
        starts = np.flatnonzero(unknown[self.words :][:count] == unknown[:count])
        codes, sums = self._codes[ids], np.zeros(len(starts), dtype=np.uint64)
        for offset in range(self.words):
            sums = sums * np.uint64(0x9E3779B97F4A7C15) + codes[starts + offset]
        return sums, starts


def searches(named: dict[str, str]) -> Iterator[OverlapSearch]:
    """A search for each NAME=FILE."""
    for name, path in named.items():
        yield OverlapSearch(name, read_prompts(name, path))
