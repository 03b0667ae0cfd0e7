"""SPACE.yaml -> a typed, checked description of a sweep; and the check that every value can be trained with."""

import difflib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from simpo.checks import is_number
from simpo.config import PreferenceConfig, defaults_of
from simpo.errors import ConfigError
from simpo.objectives import OBJECTIVES
from simpo.settings import check_settings
from simpo.settings.entries import COMMAND_LINE, Entry, read_yaml
from simpo.settings.fieldtypes import FieldType, Misfit, field_types
from simpo.sweep.axes import Axis, Choices, Span
from simpo.sweep.record import Direction, Params

SAMPLERS = ("tpe", "random", "grid", "staged")
PRUNERS = ("none", "median", "successive_halving", "hyperband", "threshold")
DEFAULT_TRIALS = 20
# Combinations that are all checked before the first run; of larger spaces each value is, alone.
_MOST_CHECKED = 256
# Settings that the sweep gives each run itself, and what they would break.
_OWN = ("output_dir", "run_name", "resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_token")


@dataclass(frozen=True)
class SweepSettings:
    """What SPACE.yaml says.

    Attributes:
        path: the file.
        space: setting -> values to search, in the order of the file, which is that of the stages.
        sampler: tpe, random, grid or staged.
        trials: how many, for tpe and random; None for the others, whose number follows from the space.
        metric: a logged number: the last one decides.
        direction: what is better.
        seed: of tpe and random.
        pruner, pruner_options: which of optuna's pruners stops bad runs early, and its arguments.
        devices: CUDA devices of each run at a time; None: one run at a time on all that are visible.
        accelerate: as for `simpo train --accelerate`.
        command: shell command that prints the number that decides, with {output_dir} in it.
        keep: whose weights stay: `best` or `all`.
        where: file and line of each key; those of searched settings under their names.
    """

    path: Path
    space: dict[str, Axis]
    sampler: str = "tpe"
    trials: int | None = None
    metric: str = "eval_rewards/accuracies"
    direction: Direction = "maximize"
    seed: int = 42
    pruner: str = "none"
    pruner_options: dict[str, Any] = field(default_factory=dict)
    devices: list[tuple[str, ...]] | None = None
    accelerate: str | None = None
    command: str | None = None
    keep: str = "best"
    where: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def slots(self) -> list[tuple[str, ...] | None]:
        """The devices of each run that goes on at a time; None for whatever is visible."""
        return [None] if self.devices is None else list(self.devices)

    def finite_values(self) -> dict[str, tuple[Any, ...]] | None:
        """All values of each setting, or None if a setting has no end of them."""
        found = {key: axis.values() for key, axis in self.space.items()}
        if None in found.values():
            return None
        return cast(dict[str, tuple[Any, ...]], found)


class _Key(NamedTuple):
    holds: Callable[[Any], bool]
    expected: str


def _one_of(*names: str) -> _Key:
    return _Key(lambda value: value in names, "one of " + ", ".join(names))


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_devices(value: Any) -> bool:
    sets = value if isinstance(value, list) and value else [None]
    return all(isinstance(one, list) and all(_whole(0)(item) or _is_text(item) for item in one) for one in sets)


_KEYS = {
    "space": _Key(lambda value: isinstance(value, dict) and bool(value), "a mapping of settings to values"),
    "sampler": _one_of(*SAMPLERS),
    "trials": _Key(_whole(1), "a whole number above 0"),
    "metric": _Key(_is_text, "the name of a logged number, such as eval_rewards/accuracies"),
    "direction": _one_of("maximize", "minimize"),
    "seed": _Key(_whole(0), "a whole number, 0 or more"),
    "pruner": _one_of(*PRUNERS),
    "pruner_options": _Key(lambda value: isinstance(value, dict), "a mapping, such as {n_startup_trials: 3}"),
    "devices": _Key(_are_devices, "a list of lists of devices, such as [[0, 1], [2, 3]]"),
    "accelerate": _Key(_is_text, "a name or a path, as for simpo train --accelerate"),
    "command": _Key(lambda value: _is_text(value) and "{output_dir}" in value, "a shell command with {output_dir}"),
    "keep": _one_of("best", "all"),
}


def read_space(path: str | Path) -> SweepSettings:
    """Read and check SPACE.yaml, as far as that goes without the configuration.

    Raises:
        ConfigError: with file and line, what is wrong and what to write.
    """
    file = Path(path)
    entries = {entry.key: entry for entry in read_yaml(file)}
    problems = [problem for entry in entries.values() if (problem := _problem_of(entry))]
    if "space" not in entries:
        problems.append(f"{file}: space is missing; write space: {{learning_rate: [3e-7, 5e-7, 8e-7, 1e-6]}}")
    _stop(problems)
    where = {key: entry.where for key, entry in entries.items()} | _lines_of_space(file)
    given = {key: entry.value for key, entry in entries.items()}
    space: dict[str, Axis] = {}
    for key, value in given.pop("space").items():
        try:
            space[str(key)] = _axis(str(key), value)
        except ValueError as error:
            problems.append(f"{where.get(str(key), file)}: {key}: {error}")
    _stop(problems)
    if given.get("devices") is not None:
        given["devices"] = [tuple(map(str, one)) for one in given["devices"]]
    sweep = SweepSettings(path=file, space=space, where=where, **given)
    _stop(_contradictions(sweep, given))
    if sweep.sampler in ("tpe", "random") and sweep.trials is None:
        sweep = SweepSettings(path=file, space=space, where=where, **given, trials=DEFAULT_TRIALS)
    return sweep


def _problem_of(entry: Entry) -> str | None:
    if entry.key not in _KEYS:
        close = difflib.get_close_matches(entry.key, _KEYS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(_KEYS)}"
        if entry.key in field_types():
            hint = f"settings are searched under `space:`, as space: {{{entry.key}: [...]}}"
        return f"{entry.where}: unknown key {entry.key!r}; {hint}"
    kind = _KEYS[entry.key]
    # `pruner: none` is text; YAML takes only `null` and `~` for nothing
    if not kind.holds(entry.value):
        return f"{entry.where}: {entry.key}: {entry.value!r} is not possible: write {kind.expected}"
    return None


def _lines_of_space(path: Path) -> dict[str, str]:
    """File and line of every searched setting."""
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    nested = next(value for key, value in root.value if key.value == "space")
    return {str(key.value): f"{path}:{key.start_mark.line + 1}" for key, _ in nested.value}


def _axis(key: str, value: Any) -> Axis:
    """The values to search for one setting, as the type of the setting where that is known."""
    kind = field_types().get(key)
    if isinstance(value, list) and value:
        if any(isinstance(one, list | dict) for one in value):
            raise ValueError("holds a list or mapping; put each in quotes, as in ['[q_proj, v_proj]', all-linear]")
        typed = tuple(_typed(kind, one) for one in value)
        twice = [one for at, one in enumerate(typed) if one in typed[:at]]
        if twice:
            raise ValueError(f"{twice[0]!r} stands twice; keep one")
        return Choices(typed)
    if isinstance(value, dict):
        return _span(kind, value)
    raise ValueError(f"{value!r} is nothing to search; write a list of values, or {{low: 2, high: 10}}")


def _typed(kind: FieldType | None, value: Any) -> Any:
    if kind is None:
        return value
    try:
        typed = kind.fit(value, None)
    except Misfit as misfit:
        raise ValueError(f"{value!r} is not possible: write {misfit.expected}") from None
    return typed if isinstance(typed, bool | int | float | str | None) else value  # enums as they were written


def _span(kind: FieldType | None, given: Mapping[str, Any]) -> Span:
    unknown = sorted(set(given) - {"low", "high", "step", "log"})
    if unknown or not {"low", "high"} <= set(given):
        raise ValueError("is no span; write {low: 2, high: 10}, and if you like log: true, or step: 0.5")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if not is_number(low) or not is_number(high) or not low < high:
        raise ValueError(f"low: {low!r} and high: {high!r} must be numbers, low below high")
    if not isinstance(log, bool):
        raise ValueError(f"log: {log!r} is not possible: write true or false")
    if step is not None and not (is_number(step) and 0 < step <= high - low):
        raise ValueError(f"step: {step!r} must be a number above 0 and at most high - low")
    if log and (step is not None or low <= 0):
        raise ValueError("log: true goes without step, and with low above 0")
    whole = _takes_whole_numbers_only(kind)
    if whole:
        if any(part != int(part) for part in (low, high, step or 1)):
            raise ValueError("takes whole numbers only; write low, high and step so")
        return Span(int(low), int(high), None if log else int(step or 1), log, whole=True)
    return Span(float(low), float(high), None if step is None else float(step), log)


def _takes_whole_numbers_only(kind: FieldType | None) -> bool:
    try:
        return kind is not None and not is_number(kind.fit(0.5, None))
    except Misfit:
        return True


def _contradictions(sweep: SweepSettings, given: Mapping[str, Any]) -> list[str]:
    problems = []

    def add(key: str, text: str) -> None:
        problems.append(f"{sweep.where.get(key, sweep.path)}: {key}: {text}")

    for key in sweep.space:
        if key in _OWN:
            add(key, "is set by the sweep for each run and cannot be searched")
    if sweep.sampler in ("grid", "staged"):
        for key in ("trials", "seed"):
            if key in given:
                add(key, f"is not used by sampler: {sweep.sampler}, which runs every value; leave it out")
        for key, axis in sweep.space.items():
            if axis.values() is None:
                add(key, f"sampler: {sweep.sampler} needs a list, or a step")
    if sweep.pruner == "none" and sweep.pruner_options:
        add("pruner_options", "is not used without a pruner; write pruner: median, or leave it out")
    if sweep.pruner != "none" and sweep.command is not None and "metric" not in given:
        add("pruner", "watches `metric`, while `command` decides; write the metric, for which direction holds too")
    flat = [device for one in sweep.devices or [] for device in one]
    twice = [device for at, device in enumerate(flat) if device in flat[:at]]
    if twice:
        add("devices", f"{twice[0]} stands twice; a device serves one run at a time")
    if sweep.accelerate is None and any(len(one) > 1 for one in sweep.devices or []):
        add("devices", "several devices for a run need accelerate: zero3, or another launch configuration")
    return problems


def check_candidates(sweep: SweepSettings, configs: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Check the configuration, and every searched value (of small spaces every combination) with it.

    Returns the configuration's settings, as far as they were given.

    Raises:
        ConfigError: a setting is unknown, or a value is impossible; with the line in SPACE.yaml.
    """
    base = check_settings(configs, overrides)
    problems: dict[str, None] = {}  # each once, in their order
    for point in _points_to_check(sweep):
        try:
            check_settings(configs, [*overrides, *override_words(point)])
        except ConfigError as error:
            problems.update(dict.fromkeys(_placed(str(error), sweep, point)))
    schedule = base.get("eval_strategy", "no")
    watches = sweep.metric.startswith("eval_") and "eval_strategy" not in sweep.space
    if sweep.pruner != "none" and watches and getattr(schedule, "value", schedule) in ("no", None):
        text = "needs evaluations during training; write eval_strategy: steps and eval_steps in the configuration"
        problems[f"{sweep.where['pruner']}: pruner: {sweep.pruner} {text}"] = None
    _stop(list(problems))
    return base


def _points_to_check(sweep: SweepSettings) -> list[Params]:
    samples = {key: axis.samples() for key, axis in sweep.space.items()}
    singles = [{key: value} for key, values in samples.items() for value in values]
    if sweep.sampler == "staged" or math.prod(len(values) for values in samples.values()) > _MOST_CHECKED:
        return singles
    return [dict(zip(samples, point, strict=True)) for point in itertools.product(*samples.values())]


def _placed(message: str, sweep: SweepSettings, point: Params) -> list[str]:
    """The lines of a settings error, with the line in SPACE.yaml in place of `command line`."""
    lines = [line.strip() for line in message.splitlines()]
    if len(lines) > 1 and "settings are wrong" in lines[0]:
        lines = lines[1:]
    placed = []
    for line in lines:
        # the first searched setting that the line names is the one that it is about
        found = {key: re.search(rf"(?<!\w){re.escape(key)}(?!\w)", line) for key in point}
        named = sorted((match.start(), key) for key, match in found.items() if match)
        where = sweep.where.get(named[0][1] if named else next(iter(point)), str(sweep.path))
        placed.append(line.replace(f"{COMMAND_LINE}: ", f"{where}: ").replace(": --", ": "))
    return placed


def start_of(sweep: SweepSettings, base: Mapping[str, Any]) -> Params:
    """The configuration's value of each searched setting, where the stages begin.

    Raises:
        ConfigError: a setting is searched under an old name.
    """
    types = field_types()
    old = [key for key in sweep.space if key not in types]
    if old:
        raise ConfigError(f"{sweep.where[old[0]]}: {old[0]}: sampler: staged needs the setting's present name")
    objective = base.get("objective", defaults_of(PreferenceConfig)["objective"])
    given = {**OBJECTIVES[objective].knobs, **base}  # what the objective uses has its defaults
    return {key: given.get(key, defaults_of(types[key].owner)[key]) for key in sweep.space}


def override_words(params: Params) -> list[str]:
    """Values as `--key=value`; read back they are equal."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in params.items()]


def _stop(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("\n  ".join(problems))
