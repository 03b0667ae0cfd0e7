"""The stages of the comparison of objectives: one start, one run for each objective, the same judge for all."""

import concurrent.futures
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.demo_compare_report import Trial, findings, print_table, save_csv, save_picture
from scripts.demo_model import build_model, build_tokenizer, generate, no_bars, teach
from scripts.demo_pairs import GOOD, DemoData, answers, make_data, write_jsonl
from scripts.demo_run import CONFIG, FULL, QUICK, Sizes
from simpo import PreferenceConfig, PreferenceTrainer
from simpo.errors import SimPOError
from simpo.losses import PairLogps
from simpo.objectives import OBJECTIVES
from simpo.settings import read_settings

FILES = Path("training_configs/objectives")
# Half of the demo's epochs, and no look at the held-out pairs on the way.
SHARED = (
    "--num_train_epochs=1",
    "--eval_strategy=no",
    "--eval_on_start=false",
    "--save_strategy=no",
    "--disable_tqdm=true",
)

SLOW, FAST = "--learning_rate=2e-4", "--learning_rate=4e-4"
# file of training_configs/objectives: its title, and what was tried at another seed (`--search --seed=1`). The first is
# the best of them: by the share of good answers, then by likelihood accuracy.
TRIED: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "rrhf": ("RRHF", ((FAST, "--nll_weight=1"), (SLOW, "--nll_weight=1"), (SLOW, "--nll_weight=0.1"))),
    "slic-hf": (
        "SLiC-HF",
        (
            (FAST, "--nll_weight=1", "--delta=1"),
            (SLOW, "--nll_weight=1", "--delta=1"),
            (SLOW, "--nll_weight=0.1", "--delta=1"),
        ),
    ),
    "dpo": (
        "DPO",
        (
            (SLOW, "--beta=0.1"),
            (SLOW, "--beta=0.05"),
            (SLOW, "--beta=0.01"),
            (FAST, "--beta=0.1"),
            ("--learning_rate=1e-4", "--beta=0.1"),
            ("--learning_rate=5e-4", "--beta=0.05"),
        ),
    ),
    "ipo": ("IPO", ((FAST, "--tau=0.1"), (SLOW, "--tau=0.1"), (SLOW, "--tau=0.5"), (SLOW, "--tau=0.01"))),
    "cpo": ("CPO", ((FAST, "--beta=0.1"), (SLOW, "--beta=0.1"), (SLOW, "--beta=0.01"))),
    "kto": ("KTO", ((SLOW, "--beta=0.1"), (SLOW, "--beta=0.05"), (FAST, "--beta=0.1"))),
    "orpo": ("ORPO", ((FAST, "--odds_weight=0.1"), (SLOW, "--odds_weight=0.1"), (SLOW, "--odds_weight=1"))),
    "r-dpo": (
        "R-DPO",
        (
            (SLOW, "--beta=0.1", "--length_penalty=0.1"),
            (SLOW, "--beta=0.1", "--length_penalty=0.05"),
            (FAST, "--beta=0.1", "--length_penalty=0.1"),
        ),
    ),
    "simpo": (
        "SimPO",
        (
            (FAST, "--beta=10", "--gamma_beta_ratio=0.3"),
            (SLOW, "--beta=10", "--gamma_beta_ratio=0.3"),
            (SLOW, "--beta=2", "--gamma_beta_ratio=0.5"),
            (SLOW, "--beta=2", "--gamma_beta_ratio=0.8"),
            ("--learning_rate=1e-4", "--beta=10", "--gamma_beta_ratio=0.3"),
        ),
    ),
    "simpo-no-length-normalization": (
        "SimPO, sums",
        (
            (FAST, "--beta=2", "--gamma_beta_ratio=0.5"),
            (SLOW, "--beta=2", "--gamma_beta_ratio=0.5"),
            (SLOW, "--beta=0.1", "--gamma_beta_ratio=0.3"),
        ),
    ),
}


@dataclass(frozen=True)
class Candidate:
    """An objective at a setting: its file, its title, and the overrides behind the file."""

    file: str
    title: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of its run's folder."""
        return "-".join([self.file, *(word.removeprefix("--").replace("=", "-") for word in self.overrides)])


def candidates(*, search: bool = False, only: Sequence[str] | None = None) -> list[Candidate]:
    """What is trained: the best setting of each objective, or every one that was tried.

    Raises:
        KeyError: a name that is not among the objectives.
    """
    found = []
    for file in only or TRIED:
        title, tried = TRIED[file]
        found += [Candidate(file, title, overrides) for overrides in (tried if search else tried[:1])]
    return found


def compare(
    trials: Sequence[Candidate], output: Path, *, quick: bool, seed: int, jobs: int, search: bool = False
) -> int:
    """All stages; 0 when everything ran, 2 when a run broke.

    Args:
        trials: what is trained.
        output: folder to write into.
        quick: a much smaller model on fewer pairs.
        seed: of the texts and of the supervised start.
        jobs: runs at a time, each on one thread.
        search: leave the findings out; they are about one model for each objective.
    """
    torch.set_num_threads(1)
    start, sizes = time.perf_counter(), QUICK if quick else FULL
    print("[1/3] Preference pairs, and a small Llama that answers in every way, good or bad (SFT)", flush=True)
    data = _start(sizes, output, seed)
    print(f"\n[2/3] {len(trials)} runs from it, {jobs} at a time; logs: {output}/*.log", flush=True)
    try:
        costs = _train_all(trials, output, sizes, jobs)
        print("\n[3/3] The held-out pairs under every model", flush=True)
        with no_bars():
            results = _judge_all(trials, costs, output, data, sizes)
    except (SimPOError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(results, len(data.test))
    print(f"\nTable:   {save_csv(results, output / 'objectives.csv')}")
    if not search:
        print(f"Picture: {save_picture(results, output / 'objectives.png')}")
        for line in findings(results):
            print(line)
    print(f"\nAll of it took {time.perf_counter() - start:.0f} s.")
    return 0


def _start(sizes: Sizes, output: Path, seed: int) -> DemoData:
    """Write the pairs, and teach the model that all runs start from."""
    data = make_data(
        seed,
        train_pairs=sizes.train_pairs,
        test_pairs=sizes.test_pairs,
        answers_per_question=sizes.answers_per_question,
    )
    write_jsonl(output / "train.jsonl", data.train)
    write_jsonl(output / "test.jsonl", data.test)
    tokenizer = build_tokenizer(turn["content"] for row in data.dialogues for turn in row["prompt"] + row["completion"])
    model = build_model(tokenizer, hidden_size=sizes.hidden_size, layers=sizes.layers, seed=seed)
    shutil.rmtree(output / "sft", ignore_errors=True)
    teach(model, tokenizer, data.dialogues, output / "sft", epochs=sizes.epochs, seed=seed)
    return data


def _words(trial: Candidate, output: Path, sizes: Sizes) -> list[str]:
    """The words of `simpo train` for one run."""
    folder = output / trial.folder
    paths = (
        f"--model_name_or_path={output / 'sft'}",
        f"--dataset_mixer={{{output / 'train.jsonl'}: 1.0}}",
        f"--eval_dataset_mixer={{{output / 'test.jsonl'}: 1.0}}",
        f"--output_dir={folder}",
        f"--reference_cache={folder / 'reference'}",  # one of its own: each run pays for its own reference
    )
    options = [option for option in sizes.overrides if not option.startswith("--eval_steps")]
    return [str(CONFIG), str(FILES / f"{trial.file}.yaml"), *paths, *SHARED, *trial.overrides, *options]


def _train_all(trials: Sequence[Candidate], output: Path, sizes: Sizes, jobs: int) -> list[dict[str, float]]:
    """The costs of each run, which all end before this returns."""

    def train(trial: Candidate) -> dict[str, float]:
        folder = output / trial.folder
        folder.mkdir(parents=True, exist_ok=True)
        report, log = output / f"{trial.folder}.costs.json", output / f"{trial.folder}.log"
        words = [sys.executable, "scripts/demo_train.py", str(report), *_words(trial, output, sizes), "--overwrite"]
        with log.open("w") as file:
            code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code:
            tail = "\n".join(log.read_text().splitlines()[-5:])
            raise SimPOError(f"the run of {trial.folder} ended with code {code}: {tail}")
        costs: dict[str, float] = json.loads(report.read_text())
        print(f"  {trial.folder:<60} {costs['seconds']:4.0f} s", flush=True)
        return costs

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(train, trials))


def _judge_all(
    trials: Sequence[Candidate], costs: Sequence[dict[str, float]], output: Path, data: DemoData, sizes: Sizes
) -> list[Trial]:
    """What the held-out pairs and questions say of the start, which comes first, and of each run's model."""
    start = _observe(output / "sft", data)
    neutral = Trial(title="SFT start", setting="", **start)
    results = [neutral]
    for trial, cost in zip(trials, costs, strict=True):
        args = read_settings(_words(trial, output, sizes)[:2], _words(trial, output, sizes)[2:]).training
        seen = Trial(
            title=trial.title,
            setting=", ".join(word.removeprefix("--").replace("=", " ") for word in trial.overrides),
            cpu_seconds=cost["cpu_seconds"],
            peak_mb=cost["peak_mb"],
            above_libraries_mb=cost["above_libraries_mb"],
            **_observe(output / trial.folder, data),
        )
        results.append(_with_rewards(seen, neutral, args))
    return results


def _with_rewards(seen: Trial, start: Trial, args: PreferenceConfig) -> Trial:
    """The rewards of the objective, from the log-probs of the trained model and of the start."""

    def sums(means: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        return torch.tensor(means * lengths)

    lengths = torch.tensor(seen.chosen_lengths), torch.tensor(seen.rejected_lengths)
    logps = PairLogps(
        sums(seen.chosen, seen.chosen_lengths),
        sums(seen.rejected, seen.rejected_lengths),
        *lengths,
        sums(start.chosen, seen.chosen_lengths),
        sums(start.rejected, seen.rejected_lengths),
        torch.zeros(()),  # KTO's rewards do not depend on it
    )
    losses = OBJECTIVES[args.objective].bind(args.objective_settings)(logps)
    return replace(seen, margins=(losses.chosen_rewards - losses.rejected_rewards).numpy())


def _observe(folder: Path, data: DemoData) -> dict[str, Any]:
    """Log-probs of the held-out pairs, and the share of good answers, of a saved model."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    args = PreferenceConfig(
        output_dir=str(folder), max_length=128, max_prompt_length=64, per_device_eval_batch_size=32, use_cpu=True,
        bf16=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = PreferenceTrainer(model, args, processing_class=tokenizer)
    seen: Any = trainer.predict(Dataset.from_list(data.test)).predictions  # type: ignore[arg-type]
    replies = generate(model, tokenizer, [question.text for question in data.test_questions])
    pairs = zip(replies, data.test_questions, strict=True)
    good = [reply in answers(question, GOOD, data.world) for reply, question in pairs]
    return {
        "chosen": seen["logps/chosen"],
        "rejected": seen["logps/rejected"],
        "chosen_lengths": seen["lengths/chosen"],
        "rejected_lengths": seen["lengths/rejected"],
        "good": sum(good) / len(good),
    }
