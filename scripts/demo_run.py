"""The demo's stages, from texts to the table and the picture."""

import contextlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.demo_model import build_model, build_tokenizer, judge, no_bars, teach
from scripts.demo_pairs import FLAWS, DemoData, make_data, share_longer, write_jsonl
from scripts.demo_report import Results, print_results, read_run, save_figure
from simpo.errors import SimPOError
from simpo.run import run_training
from simpo.settings import check_settings, read_settings

CONFIG = Path("training_configs/demo.yaml")
OUTPUT = Path("outputs/demo")  # the folder that CONFIG names


@dataclass(frozen=True)
class Sizes:
    """How much is made and trained, and what counts as success.

    Attributes:
        train_pairs, test_pairs: one for each question.
        answers_per_question: dialogues of the supervised start for each training question.
        epochs: of the supervised start.
        hidden_size, layers: of the model.
        overrides: settings that replace those of CONFIG.
        chance: bounds of the held-out reward accuracy before SimPO.
        goal: what it must exceed after SimPO.
    """

    train_pairs: int = 1600
    test_pairs: int = 300
    answers_per_question: int = 2
    epochs: int = 3
    hidden_size: int = 160
    layers: int = 3
    overrides: tuple[str, ...] = ()
    chance: tuple[float, float] = (0.4, 0.6)
    goal: float = 0.9


FULL = Sizes()
QUICK = Sizes(
    train_pairs=480,
    test_pairs=120,
    epochs=2,
    hidden_size=96,
    layers=2,
    overrides=("--learning_rate=6e-4", "--eval_steps=5"),
    chance=(0.1, 0.6),  # with so little teaching, facts are less probable than evasions
    goal=0.75,
)


def run_demo(sizes: Sizes, output: Path | None, seed: int, overrides: Sequence[str]) -> int:
    """All stages; 0 when the model has learnt, 1 when it has not, 2 after an error.

    Args:
        sizes: FULL or QUICK.
        output: folder to write into; None for the one that CONFIG names.
        seed: of the texts and of the supervised start.
        overrides: settings that replace those of CONFIG, as `--key=value`.
    """
    # More threads gain little on a model this small, lose a lot on a busy machine, and change the last digits.
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        passed = _run(sizes, output, seed, [*_paths(output), *sizes.overrides, *overrides])
    except SimPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"The demo took {time.perf_counter() - start:.0f} s.")
    return 0 if passed else 1


def _run(sizes: Sizes, output: Path | None, seed: int, overrides: list[str]) -> bool:
    check_settings(CONFIG, overrides)
    folder = OUTPUT if output is None else output
    with _stage(1, "Preference pairs from templates"):
        data = _write_data(sizes, folder, seed)
    with _stage(2, "A tokenizer, and a Llama from scratch that learns to answer in every way, good or bad (SFT)"):
        _start_model(sizes, data, folder / "sft", seed)
    settings = read_settings(CONFIG, overrides)
    trained = Path(str(settings.training.output_dir))
    with _stage(3, "What it answers before SimPO"), no_bars():
        before = judge(folder / "sft", data, settings.training)
        print(f"{before.good:.0%} of its greedy answers to held-out questions are true, friendly and on topic")
    command = shlex.join(["simpo", "train", str(CONFIG), "--overwrite", *overrides])
    with _stage(4, f"SimPO, as by: {command}"):
        run_training(settings, overwrite=True)
    with _stage(5, "What it answers after SimPO, loaded again from disk"), no_bars():
        after = judge(trained, data, settings.training)
        print(f"{after.good:.0%} of its greedy answers to held-out questions are true, friendly and on topic")
    results = Results(read_run(trained), before, after, settings.training)
    print_results(results, data)
    print(f"\nPicture: {save_figure(results, folder / 'demo.png')}")
    print(f"Model:   {trained}")
    return _has_learnt(results, sizes)


@contextlib.contextmanager
def _stage(number: int, title: str) -> Iterator[None]:
    print(f"\n[{number}/5] {title}", flush=True)
    start = time.perf_counter()
    yield
    print(f"[{number}/5] done in {time.perf_counter() - start:.1f} s", flush=True)


def _paths(output: Path | None) -> list[str]:
    if output is None:
        return []
    return [
        f"--model_name_or_path={output / 'sft'}",
        f"--dataset_mixer={{{output / 'train.jsonl'}: 1.0}}",
        f"--eval_dataset_mixer={{{output / 'test.jsonl'}: 1.0}}",
        f"--output_dir={output / 'simpo'}",
    ]


def _write_data(sizes: Sizes, folder: Path, seed: int) -> DemoData:
    data = make_data(
        seed,
        train_pairs=sizes.train_pairs,
        test_pairs=sizes.test_pairs,
        answers_per_question=sizes.answers_per_question,
    )
    for name, rows in (("train", data.train), ("test", data.test), ("sft", data.dialogues)):
        write_jsonl(folder / f"{name}.jsonl", rows)
        print(f"{folder / name}.jsonl: {len(rows):,} {'dialogues' if name == 'sft' else 'pairs'}")
    seen = {row["prompt"][0]["content"] for row in [*data.train, *data.dialogues]}
    shared = sum(row["prompt"][0]["content"] in seen for row in data.test)
    print(f"Held-out prompts that occur in training: {shared} of {len(data.test)}")
    print(
        f"The chosen answer is the longer one in {share_longer(data.train):.0%} of the training pairs and in "
        f"{share_longer(data.test):.0%} of the held-out ones: length tells nothing"
    )
    print("One pair for each way in which the rejected answer can fail:")
    for flaw in FLAWS:
        row = next(row for row in data.train if row["flaw"] == flaw)
        print(f"  {row['prompt'][0]['content']}")
        print(f"    chosen            {row['chosen'][0]['content']}")
        print(f"    rejected, {flaw:<7} {row['rejected'][0]['content']}")
    return data


def _start_model(sizes: Sizes, data: DemoData, folder: Path, seed: int) -> None:
    tokenizer = build_tokenizer(turn["content"] for row in data.dialogues for turn in row["prompt"] + row["completion"])
    model = build_model(tokenizer, hidden_size=sizes.hidden_size, layers=sizes.layers, seed=seed)
    print(f"{model.num_parameters() / 1e6:.2f} million parameters, {len(tokenizer)} tokens", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    teach(model, tokenizer, data.dialogues, folder, epochs=sizes.epochs, seed=seed)


def _has_learnt(results: Results, sizes: Sizes) -> bool:
    before, after = results.run.first["rewards/accuracies"], results.run.last["rewards/accuracies"]
    problems = []
    low, high = sizes.chance
    if not low <= before <= high:
        problems.append(f"held-out accuracy before SimPO is {before:.1%}, not between {low:.0%} and {high:.0%}")
    if after <= sizes.goal:
        problems.append(f"held-out accuracy after SimPO is {after:.1%}, not above {sizes.goal:.0%}")
    reloaded = float((results.after.margins > 0).mean())
    if abs(reloaded - after) > 2 / len(results.after.margins):
        problems.append(f"the saved model scores {reloaded:.1%} when it is loaded again, not {after:.1%}")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    if not problems:
        print(f"Passed: held-out reward accuracy went from {before:.1%} to {after:.1%}.")
    return not problems
