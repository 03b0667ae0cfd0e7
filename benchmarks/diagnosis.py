"""Runs that go wrong on purpose, beside one that goes well: the pictures and numbers of docs/diagnosis.md.

    make demo                      # the model and the pairs that all runs begin with
    python -m benchmarks.diagnosis  # trains, half a minute of CPU time each, and draws

A run that is finished is not trained again. The pictures are those of `simpo report RUN RUN`, a few of each.
"""

import argparse
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DatasetDict, load_from_disk
from transformers import AutoTokenizer

from simpo.analysis.report.curves import curve_pictures, watched_pictures
from simpo.analysis.report.run_files import RunFiles, read_run, series
from simpo.data.tokenize import TokenizeOptions, tokenize_pairs

ROOT = Path(__file__).resolve().parent.parent
PAIRS, MODEL, CONFIG = Path("outputs/demo/pairs"), "outputs/demo/sft", "training_configs/demo.yaml"
_TEXTS = ("prompt", "chosen", "rejected")
_SHOWN = (
    "monitor/chosen_drop", "monitor/drop_per_margin", "monitor/chosen_fell", "monitor/entropy", "monitor/accuracy",
    "monitor/end_probability", "monitor/stopped", "monitor/repeated", "rewards/accuracies", "eval_rewards/accuracies",
    "eval_loss",
)  # fmt: skip


def shuffled(pairs: DatasetDict) -> DatasetDict:
    """Labels by the toss of a coin, in training and evaluation."""
    rng = random.Random(0)

    def toss(row: dict[str, Any]) -> dict[str, Any]:
        return row if rng.random() < 0.5 else row | {"chosen": row["rejected"], "rejected": row["chosen"]}

    return pairs.map(toss, load_from_cache_file=False)


def given_away(pairs: DatasetDict) -> DatasetDict:
    """Every rejected answer says the same sentence at its end, as refusals and cut-off templates do."""

    def add(row: dict[str, Any]) -> dict[str, Any]:
        (answer,) = row["rejected"]
        return row | {"rejected": [answer | {"content": f"{answer['content']} I do not know."}]}

    return pairs.map(add, load_from_cache_file=False)


def running_on(pairs: DatasetDict) -> DatasetDict:
    """Chosen answers of the training set go on with the next row's and lack their end, as long ones that were cut."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    options = TokenizeOptions(max_length=128, max_prompt_length=64)
    found = {name: tokenize_pairs(split, tokenizer, options)[0] for name, split in pairs.items()}
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    answers = [ids[:-1] for ids in found["train"]["chosen_ids"]]
    longer = [own + other for own, other in zip(answers, answers[1:] + answers[:1], strict=True)]
    train = found["train"].remove_columns("chosen_ids").add_column("chosen_ids", longer)
    return DatasetDict(train=train.select_columns(columns), test=found["test"].select_columns(columns))


class Run(NamedTuple):
    """One run: what it is called in pictures, its settings, and what is done to the pairs."""

    title: str
    settings: Sequence[str] = ()
    spoil: Callable[[DatasetDict], DatasetDict] | None = None


RUNS = {
    "healthy": Run("healthy"),
    "rate-5x": Run("learning rate 5x", ["--learning_rate=1e-3"]),
    "rate-100x": Run("learning rate 100x", ["--learning_rate=2e-2"]),
    "shuffled": Run("labels shuffled", spoil=shuffled),
    "given-away": Run("given away", spoil=given_away),
    "running-on": Run("chosen without end", ["--no-audit"], running_on),
}
# Picture -> as what the report calls it, and which runs it shows
PICTURES = {
    "both-rewards-fall": ("monitor-logps-chosen.png", ("healthy", "rate-5x")),
    "collapse": ("monitor-logps-chosen.png", ("healthy", "rate-5x", "rate-100x")),
    "accuracy": ("accuracy.png", ("healthy", "shuffled", "given-away")),
    "it-repeats": ("monitor-repeated.png", ("healthy", "rate-5x", "rate-100x")),
    "it-never-stops": ("monitor-end_probability.png", ("healthy", "running-on")),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not there, draw, print what the monitors said; 2 where the demo is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/diagnosis"), help="folder of the runs")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="folder of the pictures")
    given = parser.parse_args(argv)
    os.chdir(ROOT)
    if not (PAIRS.is_dir() and Path(MODEL).is_dir()):
        print(f"error: {PAIRS} or {MODEL} is not there; run `make demo` first", file=sys.stderr)
        return 2
    for name, run in RUNS.items():
        train(given.output / name, run)
    found = {name: read_run(given.output / name) for name in RUNS}
    draw(found, given.images)
    print_numbers(found)
    return 0


def train(folder: Path, run: Run) -> None:
    """The demo's SimPO run with what is changed; nothing where it is finished.

    Raises:
        CalledProcessError: it failed.
    """
    if (folder / "run_manifest.json").is_file() and read_run(folder).finished:
        return
    data: list[str] = []
    if run.spoil is not None:
        spoilt = folder.parent / "data" / folder.name
        run.spoil(load_from_disk(str(PAIRS))).save_to_disk(str(spoilt))
        data = [f"--dataset_mixer={{{spoilt}: 1.0}}"]
    words = ["train", CONFIG, f"--output_dir={folder}", "--overwrite", *data, *run.settings]
    print("simpo", *words, flush=True)
    subprocess.run([sys.executable, "-m", "simpo.cli", *words], check=True)


def draw(found: Mapping[str, RunFiles], folder: Path) -> None:
    """The pictures of `PICTURES`, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (kind, runs) in PICTURES.items():
        logs = {RUNS[run].title: found[run].log for run in runs}
        pictures = {one.name: one for one in [*curve_pictures(logs), *watched_pictures(logs)]}
        (folder / f"{name}.png").write_bytes(pictures[kind].png)


def print_numbers(found: Mapping[str, RunFiles]) -> None:
    """What was logged first, last and at most, and which warnings were raised."""
    for name, run in found.items():
        print(name)
        for key in _SHOWN:
            if values := [*series(run.log, key).values()]:
                print(f"  {key}: {values[0]:.3g} to {values[-1]:.3g}, at most {max(values):.3g}")
        print(*(f"  {one['name']}: {one['level']} at step {one['step']}" for one in run.warnings), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
