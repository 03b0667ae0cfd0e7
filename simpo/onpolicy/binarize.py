"""Generations and scores -> a preference data set that trains as it is, every prompt accounted for."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from filelock import FileLock, Timeout

from simpo.checks import is_number
from simpo.data.schema import DROP_CAUSES, normalise
from simpo.errors import ConfigError, DataError, StoreError
from simpo.onpolicy.card import dataset_card, draw_histograms
from simpo.onpolicy.pairs import PAIR_CAUSES, Candidate, Choice, Picked, hash_of, pick_pairs
from simpo.onpolicy.scored import ScoredPrompt, only_annotator, read_scored
from simpo.store import read_settings_of

NOT_ANNOTATED = "not annotated yet"
FAILED = "generation or annotation failed"
NO_SCORE = "no score of this annotator"

CAUSES = {
    NOT_ANNOTATED: "run simpo annotate to its end",
    FAILED: "the records say why, in their field error",
    NO_SCORE: "the report of simpo annotate says why",
    **PAIR_CAUSES,
    **DROP_CAUSES,
}
"""Why a prompt gives no pair -> what to do about it."""

MANIFEST = "binarize.json"


@dataclass(frozen=True)
class BinarizeSettings:
    """How pairs are made.

    Args:
        generations: folder of `simpo generate`.
        scores: folder of `simpo annotate`.
        output_dir: the data set goes here.
        annotator: whose scores decide; may be left out where there is one.
        pairs: best_worst; best_random: the best against one of those that are worse; top_k: the widest margins.
        pairs_per_prompt: at most so many pairs of a prompt, with top_k.
        min_margin: smallest difference of scores; ties are dropped whatever it is.
        max_length_ratio: tokens of the longer response over those of the shorter, at most; null: any.
        drop_cut_off: leave out responses that ended at the length limit.
        test_size: prompts held out as split test: a fraction below 1, or a count.
        seed: of the split and of best_random.

    Raises:
        ConfigError: a number is out of bounds, or settings contradict each other.
    """

    generations: str
    scores: str
    output_dir: str
    annotator: str | None = None
    pairs: Choice = "best_worst"
    pairs_per_prompt: int = 1
    min_margin: float = 0.0
    max_length_ratio: float | None = None
    drop_cut_off: bool = False
    test_size: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        if self.pairs_per_prompt < 1:
            raise ConfigError(f"pairs_per_prompt: {self.pairs_per_prompt} must be at least 1")
        if self.pairs_per_prompt > 1 and self.pairs != "top_k":
            raise ConfigError(f"pairs_per_prompt: {self.pairs_per_prompt} needs pairs: top_k")
        if not (is_number(self.min_margin) and self.min_margin >= 0):
            raise ConfigError(f"min_margin: {self.min_margin} must be 0 or more")
        if self.max_length_ratio is not None and not (is_number(self.max_length_ratio) and self.max_length_ratio >= 1):
            raise ConfigError(f"max_length_ratio: {self.max_length_ratio} must be 1 or more; write e.g. 1.5")
        whole = self.test_size == int(self.test_size) if is_number(self.test_size) else False
        if not (is_number(self.test_size) and (0 <= self.test_size < 1 or (self.test_size >= 1 and whole))):
            raise ConfigError(f"test_size: {self.test_size} must be a fraction below 1, or a count")


@dataclass
class BinarizeReport:
    """What became of the prompts: total = kept + dropped.

    Args:
        annotator: whose scores decided.
        total: prompts in the generations.
        kept: prompts that gave at least one pair.
        pairs: rows.
        dropped: cause -> prompts.
        responses: all responses of all prompts.
        left_out: cause -> responses that could not be part of a pair.
        splits: split -> rows.
    """

    annotator: str
    total: int = 0
    kept: int = 0
    pairs: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    responses: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    splits: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The account for people."""
        sizes = ", ".join(f"{name} {rows:,}" for name, rows in self.splits.items())
        lines = [f"{self.kept:,} of {self.total:,} prompts gave {self.pairs:,} pairs by {self.annotator} ({sizes})"]
        lines += [
            f"  {count:,} prompts: {cause}; {CAUSES[cause.split(': ')[0]]}"
            for cause, count in self.dropped.most_common()
        ]
        lines += [
            f"  {count:,} of {self.responses:,} responses: {cause}" for cause, count in self.left_out.most_common()
        ]
        return lines


def run_binarize(settings: BinarizeSettings, *, overwrite: bool = False) -> BinarizeReport:
    """Make the data set and its card, and print the account.

    Raises:
        ConfigError: the output folder holds something, or another process writes it.
        DataError: the folders do not belong together, or no pair is left.
        StoreError: a folder is missing or damaged, or the disk is full.
    """
    output = Path(settings.output_dir)
    _check_output(output, overwrite)
    prompts = list(read_scored(settings.generations, settings.scores))
    rows, report = make_rows(prompts, settings)
    if not rows:
        raise DataError("no pair is left\n" + "\n".join(report.lines()))
    splits = split_rows(rows, settings.test_size, settings.seed)
    report.splits = {name: len(part) for name, part in splits.items()}
    sources = {"Responses": read_settings_of(settings.generations), "Scores": _scored_by(settings.scores)}
    try:
        with _sole_writer(output):
            _check_output(output, overwrite)
            part = output.with_name(f".{output.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            _table_of(splits).save_to_disk(str(part))
            picture = draw_histograms(prompts, rows, report.annotator, part / "histograms.png")
            card = dataset_card(settings, report, rows, CAUSES, picture, sources)
            (part / "README.md").write_text(card, encoding="utf-8")
            _write_manifest(part / MANIFEST, settings, report, sources)
            if output.exists():
                shutil.rmtree(output)
            os.replace(part, output)  # the folder is there as a whole or not at all
    except OSError as error:
        raise StoreError(
            f"{error.filename or output}: {error.strerror or error}; responses and scores stay, give the same command "
            "again"
        ) from error
    print("\n".join([*report.lines(), *_remarks(rows, splits, settings, report)]))
    print(f"train with dataset_mixer: {{{output}: 1.0}}")
    return report


def _remarks(
    rows: Sequence[dict[str, Any]], splits: Mapping[str, Any], settings: BinarizeSettings, report: BinarizeReport
) -> list[str]:
    lines = []
    cut = sum(row["finish_reasons"][row["chosen_index"]] == "length" for row in rows)
    if cut:
        lines.append(f"  {cut:,} of {len(rows):,} pairs: the chosen response was cut, and training ends it there; "
                     "drop_cut_off: true leaves such responses out")  # fmt: skip
    if settings.test_size and "test" not in splits:
        lines.append(f"  no split test: test_size {settings.test_size:g} of {report.kept:,} prompts is less than half "
                     "a one")  # fmt: skip
    return lines


def make_rows(
    prompts: Iterable[ScoredPrompt], settings: BinarizeSettings
) -> tuple[list[dict[str, Any]], BinarizeReport]:
    """Rows of pairs in the order of (row, id), and the account; the order of the prompts makes no difference."""
    ordered = sorted(prompts, key=lambda prompt: (prompt.row, prompt.id))
    if not ordered:
        raise DataError(f"{settings.generations}: holds no generations yet")
    report = BinarizeReport(only_annotator(ordered, settings.annotator, settings.scores))
    _check_one_form(ordered)
    rows: list[dict[str, Any]] = []
    for prompt in ordered:
        report.total += 1
        found = _rows_of(prompt, settings, report)
        if isinstance(found, str):
            report.dropped[found] += 1
            continue
        report.kept += 1
        report.pairs += len(found)
        rows += found
    return rows, report


def _check_one_form(prompts: Sequence[ScoredPrompt]) -> None:
    forms: dict[bool, ScoredPrompt] = {}
    for prompt in prompts:
        forms.setdefault(isinstance(prompt.prompt, str), prompt)
    if len(forms) == 2:
        raise DataError(
            f"prompt {forms[True].id} is a text and prompt {forms[False].id} is messages; a data set holds one form: "
            "generate them into two folders"
        )


def _rows_of(prompt: ScoredPrompt, settings: BinarizeSettings, report: BinarizeReport) -> list[dict[str, Any]] | str:
    report.responses += len(prompt.responses)
    if prompt.error is not None and all(score is None for values in prompt.scores.values() for score in values):
        return FAILED
    if not prompt.annotated:
        return NOT_ANNOTATED
    scores = prompt.scores.get(report.annotator, [])
    if all(score is None for score in scores):
        return NO_SCORE
    candidates = _candidates(prompt, scores, settings, report)
    picked = pick_pairs(
        candidates,
        settings.pairs,
        pairs_per_prompt=settings.pairs_per_prompt,
        min_margin=settings.min_margin,
        max_length_ratio=settings.max_length_ratio,
        seed=settings.seed,
        key=prompt.id,
    )
    if isinstance(picked, str):
        return picked
    rows = [_row(prompt, pair, report.annotator) for pair in picked]
    bad = next((pair for pair in map(normalise, rows) if isinstance(pair, str)), None)
    return rows if bad is None else bad


def _candidates(
    prompt: ScoredPrompt, scores: Sequence[float | None], settings: BinarizeSettings, report: BinarizeReport
) -> list[Candidate]:
    found = []
    for index, (response, score) in enumerate(zip(prompt.responses, scores, strict=True)):
        if not response["text"].strip():
            report.left_out["empty"] += 1
        elif score is None:
            report.left_out["without a score"] += 1
        elif settings.drop_cut_off and response.get("finish_reason") == "length":
            report.left_out["cut off by the length limit"] += 1
        else:
            found.append(Candidate(index, response["text"], score, int(response.get("tokens", -1))))
    if settings.max_length_ratio is not None and any(candidate.tokens < 0 for candidate in found):
        raise DataError(
            f"max_length_ratio: the lengths of the responses to {prompt.id} (row {prompt.row}) are not known, the "
            "server did not say them; leave it out"
        )
    return found


def _row(prompt: ScoredPrompt, pair: Picked, annotator: str) -> dict[str, Any]:
    def answer(candidate: Candidate) -> Any:
        text = candidate.text
        return text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]

    return {
        "prompt": prompt.prompt,
        "chosen": answer(pair.chosen),
        "rejected": answer(pair.rejected),
        **{key: value if isinstance(value, str) else json.dumps(value) for key, value in prompt.extra.items()},
        "prompt_id": prompt.id,
        "source_row": prompt.row,
        "annotator": annotator,
        "chosen_index": pair.chosen.index,
        "rejected_index": pair.rejected.index,
        "chosen_score": pair.chosen.score,
        "rejected_score": pair.rejected.score,
        "margin": pair.margin,
        "chosen_tokens": pair.chosen.tokens if pair.chosen.tokens >= 0 else None,
        "rejected_tokens": pair.rejected.tokens if pair.rejected.tokens >= 0 else None,
        "responses": prompt.texts,
        "finish_reasons": [str(response.get("finish_reason")) for response in prompt.responses],
        "seeds": [response.get("seed") for response in prompt.responses],
        "scores": [{"annotator": name, "scores": values} for name, values in sorted(prompt.scores.items())],
    }


def split_rows(rows: Sequence[dict[str, Any]], test_size: float, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows by split; all pairs of equal prompts are on one side. Without held-out prompts there is no split test.

    Which prompts are held out depends on the prompts and the seed, not on their order.

    Raises:
        ConfigError: as many prompts would be held out as there are.
    """
    keys = [json.dumps(row["prompt"], sort_keys=True, ensure_ascii=False) for row in rows]
    prompts = sorted(set(keys), key=lambda key: hash_of(seed, key))
    count = round(test_size * len(prompts)) if test_size < 1 else int(test_size)
    if count >= len(prompts):
        raise ConfigError(f"test_size: {test_size} holds out all {len(prompts)} prompts; write a smaller one")
    held_out = set(prompts[:count])
    splits = {"train": [row for row, key in zip(rows, keys, strict=True) if key not in held_out]}
    if held_out:
        splits["test"] = [row for row, key in zip(rows, keys, strict=True) if key in held_out]
    return splits


@contextlib.contextmanager
def _sole_writer(output: Path) -> Iterator[None]:
    """Nobody else writes the folder meanwhile. The lock lies beside it, since the folder is replaced as a whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f".{output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"output_dir: another process writes {output}; wait for it, or choose another") from None
    try:
        yield
    finally:
        lock.release()


def _table_of(splits: Mapping[str, Sequence[dict[str, Any]]]) -> DatasetDict:
    """Both splits with the same columns and types: `from_list` takes the columns of its first row and drops others."""
    names = list(dict.fromkeys(name for part in splits.values() for row in part for name in row))
    full = {split: [{name: row.get(name) for name in names} for row in part] for split, part in splits.items()}
    features = Dataset.from_list([row for part in full.values() for row in part]).features
    return DatasetDict({split: Dataset.from_list(part, features=features) for split, part in full.items()})


def _scored_by(scores: str) -> dict[str, Any]:
    """What the annotators of a scores folder are; what they scored is said beside it."""
    return {key: value for key, value in read_settings_of(scores).items() if key != "generations"}


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST).is_file():
        raise ConfigError(f"output_dir: {output} holds something else; choose another folder")
    if not overwrite:
        raise ConfigError(f"output_dir: {output} holds a data set; choose another folder, or give --overwrite")


def _write_manifest(
    path: Path, settings: BinarizeSettings, report: BinarizeReport, sources: dict[str, dict[str, Any]]
) -> None:
    made_of = {name.lower(): source for name, source in sources.items()}
    text = json.dumps({"settings": vars(settings), "report": vars(report), **made_of}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
