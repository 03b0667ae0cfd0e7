"""The demo's stages, from texts to the table and the picture. What a command of simpo can do, a command does."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from scripts.demo_checker import DEFAULT_TOWN, TOWN_VARIABLE
from scripts.demo_judge import Answers, compare, problems_of, read_answers
from scripts.demo_model import build_model, build_tokenizer, no_bars
from scripts.demo_pairs import VALUES, DemoData, make_data, write_jsonl
from scripts.demo_report import print_results, print_seeds, read_run, save_figure
from simpo import cli
from simpo.errors import ConfigError, SimPOError
from simpo.settings import check_settings

CONFIG = Path("training_configs/demo.yaml")
STEPS = Path("training_configs/demo")  # the files of the other steps
OUTPUT = Path("outputs/demo")  # the folder that all of them name
SEEDS_OUTPUT = Path("outputs/demo-seeds")
RESULTS = "results.json"
_SEED = 42  # the one in the files; the demo's own is added
_OWN = {"model_name_or_path", "dataset_mixer", "output_dir", "seed", "do_eval", "eval_strategy"}
_MADE = (
    "start", "sft", "responses", "scores", "pairs", "before", "before-scores", "simpo", "after", "after-scores",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much is made and trained.

    Attributes:
        train_pairs, test_pairs: questions, and pairs where pairs are given; one for each question.
        answers_per_question: dialogues of the supervised start for each training question.
        epochs: of the supervised start.
        hidden_size, layers: of the model.
        overrides: settings that replace those of CONFIG.
    """

    train_pairs: int = 1600
    test_pairs: int = 300
    answers_per_question: int = 2
    epochs: int = 3
    hidden_size: int = 160
    layers: int = 3
    overrides: tuple[str, ...] = ()


FULL = Sizes()
QUICK = Sizes(
    train_pairs=480,
    test_pairs=120,
    epochs=5,
    hidden_size=96,
    layers=2,
    overrides=("--learning_rate=6e-4", "--eval_steps=5"),
)


class StepFailedError(Exception):
    """A command of simpo ended with an error, which it has printed."""


def run_demo(sizes: Sizes, output: Path | None, seed: int, overrides: Sequence[str]) -> int:
    """All stages; 0 when SimPO has won clearly, 1 when it has not, 2 after an error.

    Args:
        sizes: FULL or QUICK.
        output: folder to write into; None for the one that the settings name.
        seed: of town, questions, first weights, order of the rows.
        overrides: settings that replace those of CONFIG, as `--key=value`.
    """
    # More threads gain little on a model this small, lose a lot on a busy machine, and change the last digits.
    torch.set_num_threads(1)
    try:
        check_settings(CONFIG, overrides)
        _check_own(overrides)
        return 0 if Demo(sizes, output or OUTPUT, seed, [*sizes.overrides, *overrides]).run() else 1
    except SimPOError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StepFailedError:
        return 2


def _check_own(overrides: Sequence[str]) -> None:
    given = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in overrides}
    for key in sorted(given & _OWN):
        raise ConfigError(f"{key}: the demo sets it itself; --output moves its folder, --seed changes its draws")


class Demo:
    """One run in one folder."""

    def __init__(self, sizes: Sizes, folder: Path, seed: int, overrides: Sequence[str]) -> None:
        self.sizes, self.folder, self.seed, self.overrides = sizes, folder, seed, overrides
        self.seconds: dict[str, dict[str, float]] = {}
        self.town = folder / "town.json"

    def run(self) -> bool:
        """Whether SimPO has won clearly."""
        with self._stage("all", ""):
            for name in _MADE:  # of an earlier demo: responses of another model would be taken for finished
                shutil.rmtree(self.folder / name, ignore_errors=True)
            with self._stage("data", "[1/8] A town, questions about it, and a Llama with random weights"):
                data = self._write_start()
            with self._stage("sft", "[2/8] SFT: it learns to answer in every way, good or bad"):
                source = {str(self.folder / "dialogues.jsonl"): 1.0}
                given = {"num_train_epochs": self.sizes.epochs, "seed": _SEED + self.seed}
                paths = self._paths(model_name_or_path="start", output_dir="sft")
                self._simpo("sft", STEPS / "sft.yaml", ["--overwrite"], dataset_mixer=source, **paths, **given)
            with self._stage("before", "[3/8] What it answers to held-out questions before SimPO"):
                before = self._answer_held_out("sft", "before")
            with self._stage("generate", "[4/8] It answers the questions of its training: on-policy samples"):
                paths = self._paths(model_name_or_path="sft", dataset_name="questions.jsonl", output_dir="responses")
                self._simpo("generate", STEPS / "generate.yaml", **paths)
            with self._stage("annotate", "[5/8] A program scores them: friendly? on topic? true?"):
                paths = self._paths(generations="responses", output_dir="scores")
                self._simpo("annotate", STEPS / "annotate.yaml", **paths)
            with self._stage("binarize", "[6/8] Pairs: of each question's answers the best against the worst"):
                paths = self._paths(generations="responses", scores="scores", output_dir="pairs")
                self._simpo("binarize", STEPS / "binarize.yaml", ["--overwrite"], **paths, seed=_SEED + self.seed)
            with self._stage("simpo", "[7/8] SimPO on these pairs"):
                source = {str(self.folder / "pairs"): 1.0}
                paths = self._paths(model_name_or_path="sft", output_dir="simpo")
                words = [*self.overrides, "--overwrite"]
                self._simpo("train", CONFIG, words, dataset_mixer=source, **paths, seed=_SEED + self.seed)
            with self._stage("after", "[8/8] What it answers to held-out questions after SimPO"):
                after = self._answer_held_out("simpo", "after")
        return self._report(data, before, after)

    @contextlib.contextmanager
    def _stage(self, name: str, title: str) -> Iterator[None]:
        if title:
            print(f"\n{title}", flush=True)
        start, busy = time.perf_counter(), time.process_time()
        yield
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - busy}
        self.seconds[name] = spent
        if title:
            print(f"      done in {spent['seconds']:.1f} s, {spent['cpu_seconds']:.1f} s of processor time", flush=True)

    def _write_start(self) -> DemoData:
        sizes, folder = self.sizes, self.folder
        data = make_data(
            self.seed,
            train_pairs=sizes.train_pairs,
            test_pairs=sizes.test_pairs,
            answers_per_question=sizes.answers_per_question,
        )
        questions = [{"prompt": row["prompt"]} for row in data.train]
        held_out = [{"prompt": row["prompt"]} for row in data.test]
        for name, rows in (("dialogues", data.dialogues), ("questions", questions), ("held_out", held_out)):
            write_jsonl(folder / f"{name}.jsonl", rows)
            print(f"{folder / name}.jsonl: {len(rows):,} {'dialogues' if name == 'dialogues' else 'questions'}")
        seen = {question.text for question in data.train_questions}
        shared = sum(question.text in seen for question in data.test_questions)
        print(f"Held-out questions that occur in training: {shared} of {len(held_out)}")
        truth = {item: {name: data.world[item, name][0] for name in VALUES} for item, _ in data.world}
        self.town.write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
        print(f"{self.town}: the truth, which only the checker reads")
        texts = (turn["content"] for row in data.dialogues for turn in row["prompt"] + row["completion"])
        tokenizer = build_tokenizer(texts)
        model = build_model(tokenizer, hidden_size=sizes.hidden_size, layers=sizes.layers, seed=self.seed)
        with no_bars():
            model.save_pretrained(folder / "start")
        tokenizer.save_pretrained(folder / "start")
        millions = model.num_parameters() / 1e6
        print(f"{folder / 'start'}: {millions:.2f} million parameters, {len(tokenizer)} tokens")
        return data

    def _simpo(self, verb: str, file: Path, words: Sequence[str] = (), **settings: Any) -> None:
        """Run a command of simpo in this process, and show it as it would be typed.

        Args:
            verb: of simpo.
            file: its settings.
            words: what follows at the end.
            settings: overrides, left out where the file says the same.
        """
        known = yaml.safe_load(file.read_text(encoding="utf-8"))
        changed = {key: value for key, value in settings.items() if known.get(key) != value}
        texts = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in changed.items()}
        line = [verb, str(file), *(f"--{key}={text}" for key, text in texts.items()), *words]
        os.environ[TOWN_VARIABLE] = str(self.town)
        named = verb == "annotate" and str(self.town) != DEFAULT_TOWN
        before = f"{TOWN_VARIABLE}={shlex.quote(str(self.town))} " if named else ""
        print(f"    $ {before}{shlex.join(['simpo', *line])}", flush=True)
        if cli.main(line):
            raise StepFailedError

    def _paths(self, **names: str) -> dict[str, str]:
        return {key: str(self.folder / name) for key, name in names.items()}

    def _answer_held_out(self, model: str, name: str) -> Answers:
        paths = self._paths(model_name_or_path=model, dataset_name="held_out.jsonl", output_dir=name)
        self._simpo("generate", STEPS / "generate.yaml", **paths)
        paths = self._paths(generations=name, output_dir=f"{name}-scores")
        self._simpo("annotate", STEPS / "annotate.yaml", **paths)
        return read_answers(self.folder / name, self.folder / f"{name}-scores", self.town)

    def _report(self, data: DemoData, before: Answers, after: Answers) -> bool:
        found = compare(before, after)
        print_results(found, before, after, data)
        run = read_run(self.folder / "simpo")
        print(f"\nPicture: {save_figure(run, found, before, after, self.folder / 'demo.png')}")
        print(f"Model:   {self.folder / 'simpo'}")
        problems = problems_of(found)
        results = {"seed": self.seed, **asdict(found), "problems": problems, "seconds": self.seconds}
        (self.folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        total = self.seconds["all"]
        print(f"The demo took {total['seconds']:.0f} s, {total['cpu_seconds']:.0f} s of processor time.")
        for problem in problems:
            print(f"FAILED: {problem}", file=sys.stderr)
        if not problems:
            print(f"Passed: SimPO's answers are right more often, by {found.gain.change()} points.")
        return not problems


def run_seeds(seeds: Sequence[int], output: Path | None, overrides: Sequence[str], *, quick: bool) -> int:
    """The demo with several seeds, each in a process and a folder of its own, and one table of all.

    Returns:
        The worst of their exit statuses.
    """
    folder = output or SEEDS_OUTPUT
    codes, results = [], []
    for seed in seeds:
        own = folder / f"seed-{seed}"
        (own / RESULTS).unlink(missing_ok=True)
        words = [sys.executable, "scripts/demo.py", "--seed", str(seed), "--output", str(own), *overrides]
        print(f"\n{'=' * 30} seed {seed}", flush=True)
        codes.append(subprocess.run([*words, *(["--quick"] if quick else [])], check=False).returncode)
        if codes[-1] > 1 or codes[-1] < 0:
            return 2
        results.append(json.loads((own / RESULTS).read_text(encoding="utf-8")))
    print_seeds(results)
    return max(codes)
