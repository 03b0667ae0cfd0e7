"""Token-id pairs to measure with: real ones where they are at hand, else random ids with the same lengths.

Loads no torch. Lengths are tokens of the tokenizer in tests/golden/tiny.
"""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "tests" / "golden" / "tiny"
PARTS = ("prompt_ids", "chosen_ids", "rejected_ids")
Pair = dict[str, list[int]]

_FIRST_ID = 12  # ids below are the tokenizer's special tokens


class LengthModel(NamedTuple):
    """Lengths of prompt, chosen and rejected: log-normal, with correlated logarithms.

    Fields:
        log_mean, log_std: of the natural logarithm of each part's length in tokens.
        correlation: of the logarithms: prompt-chosen, prompt-rejected, chosen-rejected.
        file: where real pairs with these lengths lie, if they are at hand.
    """

    log_mean: tuple[float, float, float]
    log_std: tuple[float, float, float]
    correlation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    file: Path | None = None


def by_means(means: Sequence[float], spread: float) -> LengthModel:
    """Log-normal lengths with these means in tokens and the same `spread` of their logarithms."""
    prompt, chosen, rejected = (float(np.log(mean) - spread**2 / 2) for mean in means)
    return LengthModel((prompt, chosen, rejected), (spread, spread, spread))


_REAL = ROOT.parent / "shared" / "data"
LENGTHS: dict[str, LengthModel] = {
    # Fitted to the training files: means and standard deviations of the logarithms, and their correlation.
    "hh": LengthModel(
        (4.666, 3.456, 3.677), (0.931, 0.883, 0.937), (0.224, 0.213, 0.300), _REAL / "hh_harmless_train.jsonl.gz"
    ),
    "judged": LengthModel(
        (3.865, 6.180, 5.824), (0.619, 0.905, 0.935), (-0.149, -0.106, 0.781), _REAL / "judged_pairs_train.jsonl.gz"
    ),
    # Means as published for UltraFeedback; the spread is an assumption.
    "ultrafeedback": by_means((172, 331, 312), 0.7),
}


def sample_lengths(model: LengthModel, count: int, *, max_length: int, seed: int = 0) -> np.ndarray:
    """Random lengths, cut so that prompt and either response fit in `max_length` tokens.

    Returns:
        [count, 3] int64: prompt, chosen, rejected; none below 1.
    """
    correlation = np.eye(3)
    correlation[[0, 0, 1], [1, 2, 2]] = correlation[[1, 2, 2], [0, 0, 1]] = model.correlation
    std = np.array(model.log_std)
    logs = np.random.default_rng(seed).multivariate_normal(model.log_mean, correlation * np.outer(std, std), count)
    return _fit(np.maximum(1, np.rint(np.exp(logs))).astype(np.int64), max_length)


def _fit(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """Prompts to at most half of `max_length`, responses to what is left."""
    fitted = lengths.copy()
    fitted[:, 0] = np.minimum(fitted[:, 0], max_length // 2)
    fitted[:, 1:] = np.minimum(fitted[:, 1:], max_length - fitted[:, :1])
    return fitted


def random_pairs(lengths: np.ndarray, vocabulary: int, seed: int = 0) -> list[Pair]:
    """Pairs of random ids with these lengths [N, 3]."""
    rng = np.random.default_rng(seed)
    first = min(_FIRST_ID, vocabulary - 1)
    return [
        {part: rng.integers(first, vocabulary, length).tolist() for part, length in zip(PARTS, row, strict=True)}
        for row in lengths.tolist()
    ]


def load_pairs(name: str, count: int, *, max_length: int, vocabulary: int, seed: int = 0) -> list[Pair]:
    """`count` pairs of a data set of `LENGTHS`: a random choice of real ones, or random ids with such lengths.

    Args:
        name: key of `LENGTHS`.
        count: pairs; real data must hold as many.
        max_length: bound on prompt and either response, in tokens.
        vocabulary: of the model; random ids stay below it, and real ones need at least the tokenizer's.
    """
    model = LENGTHS[name]
    if is_real(name):
        rows = _read(model.file)
        chosen = np.random.default_rng(seed).choice(len(rows), count, replace=False)
        pairs = _tokenised([rows[index] for index in chosen])
        fitted = _fit(lengths_of(pairs), max_length)
        # the end of a prompt and the beginning of a response are what counts
        return [
            {
                "prompt_ids": pair["prompt_ids"][-prompt:],
                "chosen_ids": pair["chosen_ids"][:chosen],
                "rejected_ids": pair["rejected_ids"][:rejected],
            }
            for pair, (prompt, chosen, rejected) in zip(pairs, fitted.tolist(), strict=True)
        ]
    return random_pairs(sample_lengths(model, count, max_length=max_length, seed=seed), vocabulary, seed)


def load_lengths(name: str, count: int, *, max_length: int, seed: int = 0) -> np.ndarray:
    """Lengths [count, 3] of a data set; real pairs are drawn with replacement where there are too few."""
    model = LENGTHS[name]
    if is_real(name):
        lengths = _fit(lengths_of(_tokenised(_read(model.file))), max_length)
        return lengths[np.random.default_rng(seed).choice(len(lengths), count, replace=count > len(lengths))]
    return sample_lengths(model, count, max_length=max_length, seed=seed)


def is_real(name: str) -> bool:
    """Whether the pairs of this name are real on this machine."""
    file = LENGTHS[name].file
    return file is not None and file.exists()


def lengths_of(pairs: Sequence[Pair]) -> np.ndarray:
    """[N, 3] int64: tokens of prompt, chosen, rejected."""
    return np.array([[len(pair[part]) for part in PARTS] for pair in pairs], dtype=np.int64)


def _read(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _tokenised(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """The ids of Llama-3's chat template: an ended response behind the prompt with the assistant's header."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))

    def encoded(texts: list[str]) -> list[list[int]]:
        return [item.ids for item in tokenizer.encode_batch(texts, add_special_tokens=False)]

    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    turns = [[header(turn["role"]) + turn["content"].strip() + "<|eot_id|>" for turn in row["chosen"]] for row in rows]
    prompts = ["<|begin_of_text|>" + "".join(turn[:-1]) + header("assistant") for turn in turns]
    sides = [[row[side][-1]["content"].strip() + "<|eot_id|>" for row in rows] for side in ("chosen", "rejected")]
    columns = [encoded(texts) for texts in (prompts, *sides)]
    return [dict(zip(PARTS, ids, strict=True)) for ids in zip(*columns, strict=True)]
