"""How fast preference pairs become token ids, against the tokenizer library working on ready-made texts.

    python -m benchmarks.tokenization                     # 10,000 pairs, three repeats
    python -m benchmarks.tokenization --pairs 61000       # as many as UltraFeedback has

The library is given what a trainer of pairs needs tokenised, already rendered: prompt + chosen and prompt + rejected,
in batches, with its own threads on all cores. simpo starts from messages on disk and ends with its data set on disk; it
works in one process. The ways take turns within each repeat; ratios are formed within one repeat.

    ratio    speed over that of `tokenizer(texts, add_special_tokens=False)`, which gives Python lists
    strict   speed over that of the Rust call below it alone, which gives no lists and no offsets
"""

import argparse
import gzip
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk

from benchmarks.report import RESULTS, ROOT, environment, print_table, write_json
from simpo.data.chat import resolve_chat_template
from simpo.data.tokenize import TokenizeOptions, tokenize_pairs

SHARED = ROOT.parent / "shared" / "data"
# UltraFeedback under Llama-3's template: mean tokens of prompt, chosen and rejected
MEANS = {"prompt": 172, "chosen": 331, "rejected": 312}
TEMPLATE_TOKENS = {"prompt": 10, "chosen": 1, "rejected": 1}
SPREAD = 0.7  # of the logarithm of lengths: an assumption
SPECIAL_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LIBRARY_BATCH = 1000
LIBRARY_FAST, LIBRARY_CALL = "library encode_batch", "library tokenizer call"
COLUMNS = ("way", "seconds", "pairs/s", "tokens/s", "ratio", "strict")
MODES = {"simpo standard": "standard", "simpo paper": "paper"}


def corpus(seed: int = 0) -> list[str]:
    """Words with the white space behind them: of real conversations where they are at hand, else invented ones."""
    files = sorted(SHARED.glob("*.jsonl.gz")) if SHARED.is_dir() else []
    words: list[str] = []
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                turns = [*row["chosen"], row["rejected"][-1]]
                words += (word for turn in turns for word in re.findall(r"\S+\s*", turn["content"] + "\n\n"))
    if words:
        return words
    rng = random.Random(seed)
    syllables = [a + b + c for a in "bcdfghklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "t")]
    vocabulary = ["".join(rng.choices(syllables, k=rng.choice((1, 1, 2, 2, 3)))) for _ in range(30_000)]
    zipf = list(accumulate(1 / rank for rank in range(1, len(vocabulary) + 1)))
    ends = rng.choices((" ", ", ", ". ", ".\n\n"), (88, 6, 5, 1), k=500_000)
    return [word + end for word, end in zip(rng.choices(vocabulary, cum_weights=zipf, k=len(ends)), ends, strict=True)]


def make_tokenizer(words: list[str]) -> Any:
    """A byte-level BPE tokenizer of 32k entries trained on the words, with Llama-3's template and pre-tokenisation."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(("".join(words[at : at + 1000]) for at in range(0, len(words), 1000)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[1]
    )
    tokenizer.chat_template = resolve_chat_template("llama-3", tokenizer)
    return tokenizer


def make_rows(words: list[str], tokenizer: Any, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Whole conversations of one turn; lengths are log-normal with the means of `MEANS` in tokens."""
    rng = random.Random(seed)
    blocks = [words[at : at + 500] for at in range(0, len(words), len(words) // 40)]
    tokens_per_word = len(tokenizer("".join(map("".join, blocks)))["input_ids"]) / sum(map(len, blocks))

    def text(side: str) -> str:
        mean = (MEANS[side] - TEMPLATE_TOKENS[side]) / tokens_per_word
        length = max(2, min(3000, round(mean * rng.lognormvariate(-(SPREAD**2) / 2, SPREAD))))
        at = rng.randrange(len(words) - length)
        return "".join(words[at : at + length]).strip() or "nothing"

    for _ in range(count):
        prompt = {"role": "user", "content": text("prompt")}
        sides = {side: [prompt, {"role": "assistant", "content": text(side)}] for side in ("chosen", "rejected")}
        yield {"prompt": prompt["content"], **sides}


def rendered(dataset: Dataset, tokenizer: Any) -> list[str]:
    """What the library tokenises: prompt + chosen and prompt + rejected of every row."""
    texts: list[str] = []
    for batch in dataset.iter(1000):
        sides = zip(batch["chosen"], batch["rejected"], strict=True)
        texts += tokenizer.apply_chat_template([side for row in sides for side in row], tokenize=False)
    return texts


def library(tokenizer: Any, texts: list[str], *, call: bool) -> int:
    """Tokenise in batches, through the Rust call alone or the ordinary one; returns the number of tokens."""
    count = 0
    for start in range(0, len(texts), LIBRARY_BATCH):
        batch = texts[start : start + LIBRARY_BATCH]
        if call:
            count += sum(map(len, tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]))
        else:
            encodings = tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            count += sum(map(len, encodings))
    return count


def simpo(path: str, tokenizer: Any, mode: Any, num_proc: int | None) -> int:
    """Messages on disk to the tokenised data set, not cached yet; returns the number of tokens that were kept."""
    for entry in Path(path).glob("cache-*.arrow"):
        entry.unlink()
    # UltraFeedback's runs use 1024 or more; a bound that cuts little leaves the same text to both sides
    options = TokenizeOptions(mode, max_length=2048, max_prompt_length=1800)
    _, report = tokenize_pairs(load_from_disk(path), tokenizer, options, num_proc=num_proc)
    return report.total_tokens


def measure(path: str, tokenizer: Any, repeats: int, num_proc: int | None = None) -> dict[str, Any]:
    """Seconds of every way in every repeat, and the library's number of tokens."""
    dataset = load_from_disk(path)
    texts = rendered(dataset, tokenizer)
    ways: dict[str, Callable[[], int]] = {
        LIBRARY_FAST: lambda: library(tokenizer, texts, call=False),
        LIBRARY_CALL: lambda: library(tokenizer, texts, call=True),
        **{name: lambda mode=mode: simpo(path, tokenizer, mode, num_proc) for name, mode in MODES.items()},  # type: ignore[misc]
    }
    tokens = library(tokenizer, texts[:LIBRARY_BATCH], call=False)  # warms the library's cache of words
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            count = way()
            seconds[name].append(time.perf_counter() - start)
            tokens = count if name == LIBRARY_FAST else tokens
    return {"pairs": len(dataset), "tokens": tokens, "seconds": seconds}


def summarize(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for every way: medians of time and speed, and of the ratios within each repeat."""
    seconds = measured["seconds"]
    table = []
    for name, mine in seconds.items():
        median = statistics.median(mine)
        table.append(
            {
                "way": name,
                "seconds": median,
                "pairs_per_second": measured["pairs"] / median,
                "tokens_per_second": measured["tokens"] / median,
                "ratio": statistics.median(b / a for a, b in zip(mine, seconds[LIBRARY_CALL], strict=True)),
                "strict": statistics.median(b / a for a, b in zip(mine, seconds[LIBRARY_FAST], strict=True)),
            }
        )
    return table


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-proc", type=int, help="processes for simpo; default: one, with the library's threads")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    given = parser.parse_args()
    os.environ.pop("TOKENIZERS_PARALLELISM", None)  # left out, the library uses all cores
    folder = tempfile.mkdtemp(prefix="simpo-tokenization-")
    try:
        words = corpus()
        tokenizer = make_tokenizer(words)
        Dataset.from_list(list(make_rows(words, tokenizer, given.pairs))).save_to_disk(folder)
        measured = measure(folder, tokenizer, given.repeats, given.num_proc)
    finally:
        shutil.rmtree(folder)
    table = summarize(measured)
    title = f"{measured['pairs']:,} pairs, {measured['tokens']:,} tokens in prompt + chosen and prompt + rejected"
    print_table(title, COLUMNS, [list(row.values()) for row in table])
    info = environment("benchmarks.tokenization", sys.argv[1:])
    info["versions"] |= {package: metadata.version(package) for package in ("tokenizers", "pyarrow")}
    write_json(
        {"environment": info, "repeats": given.repeats, **measured, "results": table}, given.output, "tokenization_cpu"
    )


if __name__ == "__main__":
    main()
