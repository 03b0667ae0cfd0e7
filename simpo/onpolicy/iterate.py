"""`simpo iterate`: rounds of on-policy data and training, each on the policy that the one before has left.

output_dir/round-0/evaluate/{responses,scores}     the policy that is started from
output_dir/round-1/{responses,scores,pairs,model,evaluate/{responses,scores}}
output_dir/rounds.{md,csv,json,png}                the table over rounds
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from simpo.data.sources import open_source, take_split
from simpo.errors import ConfigError
from simpo.onpolicy.pipeline import (
    PAIRS,
    PASSING,
    RECORDS,
    RESPONSES,
    SCORES,
    LaunchConfig,
    annotators_identity,
    behind,
    check_record,
    child_runner,
    data_steps,
    has_records,
    held,
    identity_of,
    resolve_launches,
    say,
    score_steps,
)
from simpo.onpolicy.precheck import check_surroundings, check_training
from simpo.onpolicy.prompts import read_prompts
from simpo.onpolicy.recipe import Launch, Recipe, read_recipe
from simpo.onpolicy.rounds import Measured, RoundRow, measure, pairs_in, row_of
from simpo.onpolicy.rounds_report import write_rounds
from simpo.onpolicy.settings import GenerateSettings
from simpo.onpolicy.steps import Run, Step, describe_step, run_step, run_steps
from simpo.run.folder import checkpoints, discard_weights, is_finished

# Settings of a run that its weights do not depend on.
_PASSING_IN_TRAINING = (
    "use_cpu", "per_device_train_batch_size", "per_device_eval_batch_size", "dataset_num_proc", "disable_tqdm",
    "dataloader_num_workers", "log_level", "logging_steps", "report_to", "save_steps", "save_strategy",
    "save_total_limit", "reference_cache",
)  # fmt: skip


@dataclass(frozen=True)
class _Rounds:
    """What all rounds share.

    Args:
        recipe: what the file says.
        launches: how steps are started.
        rows: rows of the prompts in the order in which rounds take them; None where every round takes all.
    """

    recipe: Recipe
    launches: Mapping[str, Launch]
    rows: list[int] | None

    def folder(self, number: int) -> Path:
        return self.recipe.output_dir / f"round-{number}"

    def policy(self, number: int) -> dict[str, Any]:
        """The model that a round has left; the one that all begins with is that of round 0."""
        given = self.recipe.generate
        if number == 0:
            return {"model_name_or_path": given.model_name_or_path, "model_revision": given.model_revision}
        return {"model_name_or_path": str(self.folder(number) / "model"), "model_revision": None}

    def evaluation(self, number: int) -> list[Step]:
        """How the policy of a round is measured."""
        evaluate = self.recipe.evaluate
        assert evaluate is not None
        asked = replace(evaluate.generate, **self.policy(number))
        folder = self.folder(number) / "evaluate"
        return score_steps(asked, evaluate.annotate, folder, self.launches, f"round-{number}/evaluate: ")

    def data(self, number: int) -> list[Step]:
        """How a round comes to its pairs."""
        generate = replace(self.recipe.generate, **self.policy(number - 1))
        if self.rows is not None:
            own = str(self.folder(number) / "prompts")
            generate = replace(generate, dataset_name=own, dataset_config=None, dataset_split="train", max_prompts=None)
        return data_steps(self.recipe, generate, self.folder(number), self.launches, f"round-{number}: ")

    def training(self, number: int) -> Step:
        """How a round trains on its pairs."""
        folder = self.folder(number)
        policy = {key: value for key, value in self.policy(number - 1).items() if value is not None}
        settings = {
            **policy,
            "dataset_mixer": {str(folder / "pairs"): 1.0},
            **(self.recipe.train or {}),
            "output_dir": str(folder / "model"),
            "run_name": f"{self.recipe.output_dir.name}-round-{number}",
        }
        if (folder / "pairs").is_dir() and "test" not in pairs_in(folder / "pairs"):
            settings |= {"eval_strategy": "no"}  # of too few pairs none is held out
        file = folder / "settings" / "train.yaml"
        return Step(f"round-{number}: train", "train", settings, folder / "model", file, self.launches.get("train"))

    def steps(self, number: int) -> list[Step]:
        """Everything that a round does."""
        return [*([*self.data(number), self.training(number)] if number else []), *self.evaluation(number)]

    def finished(self, number: int) -> bool:
        """Whether a round has come to its end."""
        return all(step.done for step in self.steps(number))

    def prompts(self, number: int) -> list[int]:
        """The rows that a round takes."""
        size = self.recipe.prompts_per_round
        assert self.rows is not None and size is not None
        return self.rows[(number - 1) * size : number * size]


def run_iterate(
    configs: Sequence[str],
    overrides: Sequence[str],
    rounds: int,
    *,
    launch_config: LaunchConfig,
    launch: Launch | None = None,
    dry_run: bool = False,
    run: Run | None = None,
) -> list[RoundRow]:
    """Generate, annotate, binarize, train and evaluate, `rounds` times; go on where an earlier call was interrupted.

    Args:
        configs, overrides: as for `read_recipe`.
        rounds: how many there are to be in the end.
        launch_config, launch, dry_run, run: as for `run_onpolicy`.

    Returns:
        The table, from round 0 on.

    Raises:
        ConfigError: a setting is wrong, prompts do not suffice, or the folder holds something made with other settings.
        StepFailed: a step ended with an error.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds {rounds}: must be at least 1")
    recipe = read_recipe(configs, overrides, rounds=True)
    assert recipe.evaluate is not None and recipe.train is not None
    _check_policy(recipe)
    launches = resolve_launches(recipe, launch, launch_config)
    check_surroundings([recipe.generate], recipe.annotate.annotators, recipe.evaluate.annotate.annotators)
    rows, prompts = _rows_of_rounds(recipe, rounds)
    plan = _Rounds(recipe, launches, rows)
    identity = _identity(recipe) | prompts
    check_record(recipe.output_dir / RECORDS[1], identity, _free_in(recipe.output_dir))
    if run is None and not plan.training(rounds).done:
        check_training(plan.training(1).settings)
    if dry_run:
        print("\n".join(describe_step(step) for step in _all_steps(plan, rounds)))
        return []
    with held(recipe.output_dir, RECORDS[1], identity, _free_in):
        return _run_rounds(plan, rounds, run or child_runner(recipe.output_dir))


def _all_steps(plan: _Rounds, rounds: int) -> list[Step]:
    return [step for number in range(rounds + 1) for step in plan.steps(number)]


def _run_rounds(plan: _Rounds, rounds: int, run: Run) -> list[RoundRow]:
    recipe = plan.recipe
    assert recipe.evaluate is not None
    if plan.finished(0):
        say("round-0: finished")
    else:
        run_steps(plan.evaluation(0), run, say)
    first = _measure(plan, 0)
    table = [row_of(0, first, first)]
    number = 1
    while number <= rounds or plan.finished(number):  # the table keeps rounds of an earlier call with more of them
        ran = not plan.finished(number)
        if ran:
            _run_round(plan, number, run)
        else:
            say(f"round-{number}: finished")
        if recipe.keep_models == "last" and number > 1:
            discard_weights(plan.folder(number - 1) / "model")
        table.append(row_of(number, _measure(plan, number), first, plan.folder(number)))
        lines = write_rounds(table, recipe.output_dir, recipe.evaluate.annotator)
        number += 1
        if ran or (number > rounds and not plan.finished(number)):
            say("\n".join(lines))
    last = plan.policy(number - 1)["model_name_or_path"]
    say(f"the table is in {recipe.output_dir}/rounds.md, .csv, .json and .png; the last policy is {last}")
    return table


def _run_round(plan: _Rounds, number: int, run: Run) -> None:
    if plan.rows is not None:
        _write_prompts(plan.recipe.generate, plan.prompts(number), plan.folder(number) / "prompts")
    run_steps(plan.data(number), run, say)
    run_step(plan.training(number), run, say)  # made here: the pairs say how it is evaluated
    run_steps(plan.evaluation(number), run, say)


def _measure(plan: _Rounds, number: int) -> Measured:
    assert plan.recipe.evaluate is not None
    folder = plan.folder(number) / "evaluate"
    return measure(str(folder / RESPONSES), str(folder / SCORES), plan.recipe.evaluate.annotator)


def _check_policy(recipe: Recipe) -> None:
    """Refuse what a second round, or the training of the first one, could not go on from."""
    from transformers.utils.peft_utils import find_adapter_config_file

    generate = recipe.generate
    if generate.engine == "server":
        raise ConfigError(
            "generate.engine: server: the server would answer with its own model in every round; write transformers, "
            "or vllm"
        )
    if (recipe.train or {}).get("use_peft"):
        raise ConfigError(
            "train: use_peft: true leaves an adapter, and the next round's training needs a whole model; write "
            "use_peft: false, or run the rounds one by one and merge the adapters between them"
        )
    try:
        adapter = find_adapter_config_file(generate.model_name_or_path, revision=generate.model_revision)
    except (OSError, ValueError):  # there is no such model: the first step says so
        adapter = None
    if adapter is not None:
        raise ConfigError(
            f"generate: model_name_or_path: {generate.model_name_or_path} is an adapter, and training needs a whole "
            "model; merge it into its base first"
        )


def _rows_of_rounds(recipe: Recipe, rounds: int) -> tuple[list[int] | None, dict[str, Any]]:
    """The rows of the prompts, a repeated one once, in order; and what tells them from others.

    Raises:
        ConfigError: they do not suffice for so many rounds.
    """
    size = recipe.prompts_per_round
    if size is None:
        return None, {}
    prompts, _ = read_prompts(recipe.generate)
    if len(prompts) < size * rounds:
        raise ConfigError(
            f"prompts_per_round: {size} for --rounds {rounds} takes {size * rounds:,} prompts, and "
            f"{recipe.generate.dataset_name} [{recipe.generate.dataset_split}] has {len(prompts):,} different ones: "
            f"{len(prompts) // size} rounds are possible"
        )
    digest = sha256("\n".join(prompt.key for prompt in prompts).encode()).hexdigest()[:16]
    return [prompt.row for prompt in prompts], {"generate.prompts": digest}


def _write_prompts(generate: GenerateSettings, rows: Sequence[int], folder: Path) -> None:
    """A round's rows as a data set of their own, whole or not at all."""
    if folder.exists():
        return
    data = open_source(generate.dataset_name, generate.dataset_config)
    parts = data if isinstance(data, DatasetDict) else DatasetDict({"train": data})
    chosen: Dataset = take_split(parts, generate.dataset_split, generate.dataset_name).select(rows)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    chosen.save_to_disk(str(part))
    os.replace(part, folder)


def _free_in(folder: Path) -> tuple[str, ...]:
    """The sections that may still change: no round has left anything that depends on them."""
    rounds = list(folder.glob("round-*"))
    models = [one / "model" for one in rounds]
    asked = any(has_records(one / RESPONSES) or (one / "prompts").exists() for one in rounds)
    free = behind([
        ("generate", asked or any(has_records(one / "evaluate" / RESPONSES) for one in rounds)),
        ("annotate", any(has_records(one / SCORES) for one in rounds)),
        ("binarize", any((one / PAIRS).exists() for one in rounds)),
        ("train", any(checkpoints(model) or is_finished(model) for model in models)),
    ])  # fmt: skip
    # responses to evaluation prompts that are there already are held by their own store
    measured = any(has_records(one / "evaluate" / SCORES) for one in rounds)
    return (*free, *(() if measured else ("evaluate",)), *(() if asked else ("prompts_per_round",)))


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What the rounds depend on, flat; how many there are, devices and batches may change between calls."""
    evaluate = recipe.evaluate
    assert evaluate is not None
    found = identity_of(recipe) | {"prompts_per_round": recipe.prompts_per_round}
    found |= {f"train.{key}": value for key, value in (recipe.train or {}).items() if key not in _PASSING_IN_TRAINING}
    found |= {f"evaluate.{key}": value for key, value in vars(evaluate.generate).items() if key not in PASSING}
    found |= annotators_identity("evaluate", evaluate.annotate.annotators)
    return found | {"evaluate.annotator": evaluate.annotator}
