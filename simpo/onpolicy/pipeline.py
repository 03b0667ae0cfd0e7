"""`simpo onpolicy`: prompts to pairs, from one file; and what `simpo iterate` shares with it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simpo.errors import ConfigError
from simpo.onpolicy.annotators.kinds import identity, read_annotators
from simpo.onpolicy.precheck import check_surroundings
from simpo.onpolicy.recipe import Launch, Recipe, read_recipe
from simpo.onpolicy.settings import GenerateSettings
from simpo.onpolicy.steps import Run, Step, Verb, describe_step, given_settings, run_steps
from simpo.processes import run_child, sole_owner, stop_left_over
from simpo.store import PART, write_whole

RESPONSES, SCORES, PAIRS, SETTINGS = "responses", "scores", "pairs", "settings"
_LOCK, _NOTE = "onpolicy.lock", "process.json"
RECORDS = ("onpolicy.json", "iterate.json")
"""What the pairs, and the rounds, of a folder were made with."""

_OWN_BEFORE = {_LOCK, _NOTE, *(name + PART for name in RECORDS)}  # what a start that was killed at once may leave

PASSING = (
    "output_dir", "batch_size", "use_cpu", "tensor_parallel_size", "gpu_memory_utilization", "server_urls",
    "server_timeout", "server_retries", "server_patience", "max_in_flight", "api_key_env", "retry_errors",
)  # fmt: skip
"""Settings of `simpo generate` that its responses do not depend on: devices, batches, servers."""
LaunchConfig = Callable[[str], Path]


def run_onpolicy(
    configs: Sequence[str],
    overrides: Sequence[str],
    *,
    launch_config: LaunchConfig,
    launch: Launch | None = None,
    dry_run: bool = False,
    run: Run | None = None,
) -> None:
    """Sample, score and pair, into folders of `output_dir`; go on where an earlier call was interrupted.

    Args:
        configs, overrides: as for `read_recipe`.
        launch_config: finds the file that a name of an accelerate configuration stands for.
        launch: how the steps are started that the file's `launch` does not name.
        dry_run: check, say what would be run, and stop.
        run: runs a command; None: as a child process.

    Raises:
        ConfigError: a setting is wrong, or the folder holds something made with others.
        StepFailed: a step ended with an error.
    """
    recipe = read_recipe(configs, overrides)
    launches = resolve_launches(recipe, launch, launch_config)
    steps = data_steps(recipe, recipe.generate, recipe.output_dir, launches)
    check_surroundings([recipe.generate], recipe.annotate.annotators)
    if dry_run:
        check_record(recipe.output_dir / RECORDS[0], identity_of(recipe), free_in(recipe.output_dir))
        print("\n".join(describe_step(step) for step in steps))
        return
    with held(recipe.output_dir, RECORDS[0], identity_of(recipe), free_in):
        run_steps(steps, run or child_runner(recipe.output_dir), say)


def say(line: str) -> None:
    """Print a line before a child prints its own."""
    print(line, flush=True)


def child_runner(folder: Path) -> Run:
    """Runs commands as child processes, which are noted in the folder."""
    return lambda command: run_child(command, folder / _NOTE)


def data_steps(
    recipe: Recipe, generate: GenerateSettings, folder: Path, launches: Mapping[str, Launch], label: str = ""
) -> list[Step]:
    """Generate, annotate and binarize in a folder: the policy and its prompts are those of `generate`."""
    places = {name: str(folder / name) for name in (RESPONSES, SCORES, PAIRS)}
    annotate = replace(recipe.annotate, generations=places[RESPONSES], output_dir=places[SCORES])
    binarize = replace(recipe.binarize, generations=places[RESPONSES], scores=places[SCORES], output_dir=places[PAIRS])
    return [
        *score_steps(generate, annotate, folder, launches, label),
        Step(f"{label}binarize", "binarize", given_settings(binarize), folder / PAIRS, _file(folder, "binarize")),
    ]


def score_steps(
    generate: GenerateSettings, annotate: Any, folder: Path, launches: Mapping[str, Launch], label: str
) -> list[Step]:
    """Generate and annotate in a folder."""
    generate = replace(generate, output_dir=str(folder / RESPONSES))
    annotate = replace(annotate, generations=str(folder / RESPONSES), output_dir=str(folder / SCORES))
    verbs: list[tuple[Verb, Any, str]] = [("generate", generate, RESPONSES), ("annotate", annotate, SCORES)]
    return [
        Step(f"{label}{verb}", verb, given_settings(settings), folder / name, _file(folder, verb), launches.get(verb))
        for verb, settings, name in verbs
    ]


def _file(folder: Path, name: str) -> Path:
    return folder / SETTINGS / f"{name}.yaml"


def resolve_launches(recipe: Recipe, launch: Launch | None, launch_config: LaunchConfig) -> dict[str, Launch]:
    """How each step is started: by the file, else by the command line; names become paths.

    Raises:
        ConfigError: there is no such configuration, or this process is a launcher's worker itself.
    """
    if "LOCAL_RANK" in os.environ:
        raise ConfigError("inside `accelerate launch`: start it directly, each step is launched by itself")
    named = dict.fromkeys(("generate", "annotate", "train"), launch) | recipe.launch
    return {step: replace(one, accelerate=str(launch_config(one.accelerate))) for step, one in named.items() if one}


def identity_of(recipe: Recipe) -> dict[str, Any]:
    """What the pairs depend on, flat; devices, batches and servers may change from one call to the next."""
    found = {f"generate.{key}": value for key, value in vars(recipe.generate).items() if key not in PASSING}
    found |= annotators_identity("annotate", recipe.annotate.annotators)
    folders = ("generations", "scores", "output_dir")
    return found | {f"binarize.{key}": value for key, value in vars(recipe.binarize).items() if key not in folders}


def annotators_identity(section: str, annotators: Mapping[str, Any]) -> dict[str, Any]:
    """What scores depend on, flat."""
    kinds = read_annotators(annotators)
    return {f"{section}.{name}.{key}": value for name, kind in kinds.items() for key, value in identity(kind).items()}


def free_in(folder: Path) -> tuple[str, ...]:
    """The steps of `simpo onpolicy` whose settings may still change."""
    return behind([
        ("generate", has_records(folder / RESPONSES)),
        ("annotate", has_records(folder / SCORES)),
        ("binarize", (folder / PAIRS).exists()),
    ])  # fmt: skip


def behind(steps: Sequence[tuple[str, bool]]) -> tuple[str, ...]:
    """The steps behind the last one that has left something; what a step leaves depends on those before it as well."""
    begun = max((number for number, (_, left) in enumerate(steps, start=1) if left), default=0)
    return tuple(name for name, _ in steps[begun:])


def has_records(folder: Path) -> bool:
    """Whether a store holds anything; it need not be there."""
    return any(path.stat().st_size for path in folder.glob("records-*.jsonl"))


def check_record(file: Path, settings: Mapping[str, Any], free: Sequence[str] = ()) -> None:
    """Refuse a folder that holds something else, or what was made with other settings.

    Args:
        file: what the folder was made with.
        settings: what it would be gone on with.
        free: sections that may differ.

    Raises:
        ConfigError: with every difference.
    """
    folder = file.parent
    if not file.is_file():
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if not names & set(RECORDS) and names - _OWN_BEFORE:  # both commands may use one folder
            shown = ", ".join(sorted(names)[:3])
            raise ConfigError(f"output_dir: {folder} holds something else ({shown}); choose another folder")
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(dict(settings)))
    changed = [
        f"{key}: {json.dumps(before.get(key))} there, {json.dumps(now.get(key))} now"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key.partition(".")[0] not in free
    ]
    if changed:
        raise ConfigError(
            f"output_dir: {folder} was made with other settings:\n  " + "\n  ".join(changed)
            + "\nUse the same ones, or choose another output_dir"
        )  # fmt: skip


@contextlib.contextmanager
def held(
    folder: Path, record: str, settings: Mapping[str, Any], free: Callable[[Path], Sequence[str]] = lambda _: ()
) -> Iterator[None]:
    """The folder, held against a second command; what it is made with is written down, or compared.

    Args:
        folder: of the command.
        record: name of the file in it that says what it is made with.
        settings: as for `check_record`.
        free: the sections of a folder that may differ from those that are written down, as for `check_record`.

    Raises:
        ConfigError: another command uses it, or as `check_record`.
    """
    check_record(folder / record, settings, free(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with sole_owner(folder / _LOCK, f"output_dir: another process works in {folder}; wait for it, or choose another"):
        stop_left_over(folder / _NOTE)  # before any step is looked at: it may be writing still
        check_record(folder / record, settings, free(folder))
        text = json.loads((folder / record).read_text(encoding="utf-8")) if (folder / record).exists() else None
        if text != json.loads(json.dumps(dict(settings))):
            write_whole(folder / record, dict(settings))
        yield
