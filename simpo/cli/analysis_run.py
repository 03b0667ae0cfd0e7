"""`simpo analyze`: scores of `simpo.evals.pairs` into the statistics and pictures of `simpo.analysis`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpo.analysis.comparison import Scored, differences, measures, on_common_pairs
from simpo.analysis.generations import generation_statistics
from simpo.analysis.pairs import read_pairs
from simpo.cli.analysis_plan import Plan, file_name, other_starts
from simpo.errors import ConfigError, ModelError
from simpo.evals.manifest import run_manifest
from simpo.evals.pairs.settings import PairsSettings
from simpo.store import write_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

    from simpo.evals.pairs.greedy import Answer
    from simpo.evals.pairs.measure import ReadPairs

STATE = "analysis.json"
SCORES, ANSWERS = "scores", "answers"
_FORMAT = 1


def analyze(plan: Plan) -> None:
    """Score what is not scored, and write tables, pictures and the page; every process must call it.

    Raises:
        SimPOError: what is wrong, where, and what to write instead. Scores that are done stay.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=plan.settings[0].use_cpu)
    main = accelerator.is_main_process
    if main:
        _check_folder(plan)
    accelerator.wait_for_everyone()
    notes: list[str] = []
    read = {one.name: _read(one, accelerator, first=one is plan.settings[0]) for one in plan.settings}
    policy = plan.initial
    if policy is not None and not plan.implied and policy not in plan.settings:
        read[policy.name] = _read(policy, accelerator)
    if main:  # not before data and models are known to be there: a folder belongs to the pairs that it names
        _make_folder(plan)
    accelerator.wait_for_everyone()
    for one in plan.settings:
        _score(one, read[one.name], plan, accelerator)
    policy = _score_initial(plan, read, accelerator, notes)
    if not main:
        return
    settings = [*([policy] if policy and policy not in plan.settings else []), *plan.settings]
    answers = _answers(plan, settings, read, accelerator)
    models = [_scored(one, plan.output, answers.get(one.name, []), one is policy) for one in settings]
    models, more = on_common_pairs(models)
    _show_and_write(plan, models, answers, [*notes, *more], read)


def _check_folder(plan: Plan) -> None:
    """What is there must be an analysis of the same pairs."""
    folder = plan.output
    try:
        there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        if there and STATE not in there:
            raise ConfigError(f"--output {folder}: holds something else ({', '.join(there[:3])}); name another folder")
        if there:
            found = _state(folder / STATE)
            if found["data"] != _data_of(plan):
                raise ConfigError(
                    f"--output {folder}: holds an analysis of other pairs ({', '.join(found['data']['dataset'])}); "
                    "name another folder, or delete this one"
                )
    except OSError as error:
        raise ConfigError(f"--output {folder}: cannot be read: {error.strerror or error}") from error


def _make_folder(plan: Plan) -> None:
    models = {one.name: one.model_name_or_path for one in plan.settings}
    try:
        for name in (SCORES, ANSWERS):
            (plan.output / name).mkdir(parents=True, exist_ok=True)
        write_whole(plan.output / STATE, {"format": _FORMAT, "data": _data_of(plan), "models": models})
    except OSError as error:
        raise ConfigError(f"--output {plan.output}: cannot be written: {error.strerror or error}") from error


def _data_of(plan: Plan) -> dict[str, Any]:
    first = plan.settings[0]
    return {"dataset": dict(first.data.dataset_mixer or {}), "splits": first.dataset_splits}


def _state(path: Path) -> dict[str, Any]:
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
        _ = found["data"]["dataset"], found["data"]["splits"]
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is none of simpo analyze; name another --output") from error


def _read(settings: PairsSettings, accelerator: Accelerator, *, first: bool = False) -> ReadPairs:
    from simpo.evals.pairs.measure import read_tokens

    read = read_tokens(settings, accelerator)
    if first and read.report is not None and accelerator.is_main_process:
        print("\n".join(read.report.lines()), flush=True)
    return read


def _score(settings: PairsSettings, read: ReadPairs, plan: Plan, accelerator: Accelerator) -> None:
    from simpo.evals.pairs.kept import kept_scores

    scored = kept_scores(plan.output / SCORES / f"{file_name(settings.name)}.parquet", settings, read, accelerator)
    if accelerator.is_main_process:
        how = "scored" if scored else "scores are there"
        print(f"{settings.name}: {how}, {len(read.data):,} pairs", flush=True)


def _score_initial(
    plan: Plan, read: dict[str, ReadPairs], accelerator: Accelerator, notes: list[str]
) -> PairsSettings | None:
    """The initial policy, if there is one and it can be scored; else a note says how."""
    policy = plan.initial
    if policy is None:
        notes.append(
            "Nothing is measured against an initial policy: no run says which it is; name it with --initial MODEL"
            if plan.implied
            else "Nothing is measured against an initial policy, as --initial none asks"
        )
        return None
    if policy not in plan.settings:
        try:
            read[policy.name] = read.get(policy.name) or _read(policy, accelerator)
            _score(policy, read[policy.name], plan, accelerator)
        except ModelError as error:
            if not plan.implied:
                raise
            notes.append(
                f"Nothing is measured against the initial policy {policy.model_name_or_path}, which a run names: "
                f"{error}. Say where it is with --initial MODEL"
            )
            return None
    notes += other_starts(plan, policy)
    return policy


def _answers(
    plan: Plan, settings: Sequence[PairsSettings], read: dict[str, ReadPairs], accelerator: Accelerator
) -> dict[str, list[Answer]]:
    if not plan.prompts:
        return {}
    from simpo.evals.pairs.greedy import kept_answers, spread_prompts

    places = spread_prompts(read[plan.settings[0].name], plan.prompts)
    return {
        one.name: kept_answers(
            plan.output / ANSWERS / f"{file_name(one.name)}.json",
            one,
            read[one.name],
            places,
            accelerator,
            max_new_tokens=plan.max_new_tokens,
        )
        for one in settings
    }


def _scored(settings: PairsSettings, folder: Path, answers: Sequence[Answer], initial: bool) -> Scored:
    manifest = run_manifest(settings.model_name_or_path)
    told = manifest.get("settings", {})
    preference = "gamma" in manifest  # a supervised run has neither beta nor objective
    written = [answer.token_ids for answer in answers]
    return Scored(
        name=settings.name,
        pairs=read_pairs(folder / SCORES / f"{file_name(settings.name)}.parquet"),
        path=settings.model_name_or_path,
        objective=_objective(told) if preference else "",
        beta=told.get("beta", settings.resolve()["beta"] if _is_simpo(told) else None) if preference else None,
        gamma=manifest.get("gamma") if preference and _is_simpo(told) else None,
        initial=initial,
        answers=generation_statistics(written, [answer.stopped for answer in answers]) if answers else None,
    )


def _is_simpo(told: dict[str, Any]) -> bool:
    return bool(told.get("objective", "simpo") == "simpo")


def _objective(told: dict[str, Any]) -> str:
    name = str(told.get("objective", "simpo"))
    return name + (", no length normalisation" if told.get("length_normalization") is False else "")


def _show_and_write(
    plan: Plan,
    models: list[Scored],
    answers: dict[str, list[Answer]],
    notes: list[str],
    read: dict[str, ReadPairs],
) -> None:
    from rich.console import Console
    from rich.text import Text

    from simpo.analysis.report.models import NUMBERS, PAIRED
    from simpo.analysis.tables import print_table
    from simpo.cli.analysis_files import settings_rows, write_files

    trained = [one for one in models if not one.initial or one.name in {given.name for given in plan.settings}]
    compared = models if len(trained) == 1 else trained
    numbers, paired = measures(models, plan.beta), differences(compared, plan.beta) if len(compared) > 1 else []
    first = read[plan.settings[0].name]
    settings = settings_rows(plan, first.told, first.dropped)
    written = write_files(plan, models, numbers, paired, compared[0].name, answers, notes, settings)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print()
    print_table(numbers, f"{len(models[0].pairs):,} pairs, [95% intervals]", console)
    console.print(Text(NUMBERS, style="dim"))
    if paired:
        console.print()
        print_table(paired, f"less {compared[0].name}, pair by pair", console, signed=True)
        console.print(Text(PAIRED, style="dim"))
    for note in notes:
        console.print(Text(f"note: {note}"))
    console.print(Text(f"in {plan.output}: {', '.join(os.path.relpath(path, plan.output) for path in written)}"))
