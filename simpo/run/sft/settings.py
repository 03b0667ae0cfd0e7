"""YAML files and `--key=value` overrides -> typed, checked settings of an SFT run."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from simpo.config import ModelSettings, defaults_of
from simpo.errors import ConfigError
from simpo.redact import redact
from simpo.run.sft.config import SFTDataConfig, SFTSettings, find_sft_problems
from simpo.settings.entries import COMMAND_LINE, Entry, read_overrides, read_yaml
from simpo.settings.fieldtypes import FieldType, Misfit, field_types, types_of
from simpo.settings.oldnames import ALIASES, OLD_NAMES, RENAMED, convert, show
from simpo.settings.resolve import init_problems

Paths = str | Path | Sequence[str | Path]

_OLD = {"max_seq_length": "max_length"}  # of alignment-handbook's SFT files, beside those that preference runs know


@dataclass(frozen=True)
class SFTRunSettings:
    """Everything that an SFT run was told.

    Attributes:
        model: what is trained.
        data: what is read.
        training: how it is trained.
        resolved: every setting that was given, by its present name, converted and typed; secrets are masked.
        conversions: one line `old -> new` per old name.
        files: the settings files, in the order in which they were read.
    """

    model: ModelSettings
    data: SFTDataConfig
    training: SFTSettings
    resolved: dict[str, Any]
    conversions: list[str]
    files: list[Path]


@cache
def sft_field_types() -> dict[str, FieldType]:
    """Every setting of an SFT run by its name."""
    return types_of(ModelSettings, SFTDataConfig, SFTSettings)


def read_sft_settings(files: Paths, overrides: Sequence[str] = ()) -> SFTRunSettings:
    """Read, convert, check and build the settings of an SFT run.

    Args:
        files: settings files; a setting in a later one replaces that of an earlier one.
        overrides: `--key=value` or `--key value`; they win over every file. Values are YAML.

    Raises:
        ConfigError: a file cannot be read, a setting is unknown, of the wrong type, out of bounds, or contradicts
            another one. The message names file and line, setting, value, and what to write instead.
    """
    values, conversions, paths = _check(files, overrides)
    parts: dict[type, dict[str, Any]] = {ModelSettings: {}, SFTDataConfig: {}, SFTSettings: {}}
    for key, value in values.items():
        parts[sft_field_types()[key].owner][key] = value
    where = ", ".join(str(path) for path in paths) or COMMAND_LINE
    try:
        model, data = ModelSettings(**parts[ModelSettings]), SFTDataConfig(**parts[SFTDataConfig])
        training = SFTSettings(**parts[SFTSettings])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (ValueError, TypeError, ImportError, OSError) as error:  # the libraries' own checks
        raise ConfigError(f"{where}: transformers refuses these settings: {error}") from error
    return SFTRunSettings(model, data, training, redact(values), conversions, paths)


def check_sft_settings(files: Paths, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """All checks of `read_sft_settings` that need no device: for a process that only starts others.

    Returns the settings that were given, by their present names, converted and typed.
    """
    return _check(files, overrides)[0]


def _check(files: Paths, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str], list[Path]]:
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    problems: list[str] = []
    conversions: list[str] = []
    merged: dict[str, Entry] = {}
    for layer in [*(read_yaml(path) for path in paths), read_overrides(overrides)]:
        for entry in layer:
            present = _present(entry, conversions, problems)
            if present is not None:
                merged[present.key] = present
    _stop_if_any(problems)
    values = _typed(merged, problems)
    _stop_if_any(problems)
    _check_together(values, merged, ", ".join(map(str, paths)) or COMMAND_LINE, problems)
    _stop_if_any(problems)
    return values, list(dict.fromkeys(conversions)), paths


def _stop_if_any(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{len(problems)} settings are wrong\n  " + "\n  ".join(problems))


def _present(entry: Entry, conversions: list[str], problems: list[str]) -> Entry | None:
    """An entry by its present name; None where there is nothing to set. What is wrong goes to the problems."""
    try:
        converted = convert(entry.key, entry.value)
    except ValueError as error:
        problems.append(f"{entry.where}: {entry.key}: {show(entry.value, entry.key)} {error}")
        return None
    if converted is not None:
        conversions.append(converted.line)
        text = entry.text if entry.key in RENAMED else None
        return None if converted.key is None else entry.renamed(converted.key, converted.value, text)
    if entry.key in _OLD:
        conversions.append(f"{entry.key} -> {_OLD[entry.key]}")
        return entry.renamed(_OLD[entry.key], entry.value, entry.text)
    if entry.key in ALIASES:
        return entry.renamed(ALIASES[entry.key], entry.value, entry.text)
    if entry.key not in sft_field_types():
        problems.append(f"{entry.where}: unknown setting {entry.key!r}; {_advice(entry.key)}")
        return None
    return entry


def _advice(key: str) -> str:
    if key in field_types():
        return "it belongs to preference runs (simpo train), leave it out"
    close = difflib.get_close_matches(key.lower().replace("-", "_"), [*sft_field_types(), *OLD_NAMES], n=1)
    if not close:
        return "no setting has a similar name; docs/sft.md lists them"
    return f"did you mean {RENAMED.get(close[0], close[0])!r}?"


def _typed(merged: Mapping[str, Entry], problems: list[str]) -> dict[str, Any]:
    values = {}
    for key, entry in merged.items():
        kind = sft_field_types()[key]
        try:
            values[key] = kind.fit(entry.value, entry.text)
        except Misfit as misfit:
            problems.append(
                f"{entry.where}: {entry.written}: {show(entry.given, key)} {kind.fault}: write {misfit.expected}"
            )
    return values


def _check_together(values: dict[str, Any], merged: Mapping[str, Entry], source: str, problems: list[str]) -> None:
    def where(*keys: str) -> str:
        return next((merged[key].where for key in keys if key in merged), source)

    if not values.get("model_name_or_path"):
        problems.append(f"{source}: model_name_or_path is missing; write a hub name or a model directory")
    if not values.get("dataset_mixer") and not values.get("dataset_name"):
        problems.append(f"{source}: dataset_mixer is missing; write dataset_mixer: {{data/dialogues.jsonl: 1.0}}")
    problems += [f"{where('model_init_kwargs')}: {text}" for text in init_problems(values)]
    found = find_sft_problems({**defaults_of(SFTSettings), **values})
    problems += [f"{where(*problem.keys)}: {problem.text}" for problem in found]
    # These two hold plain values: their own checks are the checks, and building them touches no device.
    for part in (ModelSettings, SFTDataConfig):
        given = {key: value for key, value in values.items() if sft_field_types()[key].owner is part}
        try:
            part(**given)
        except ConfigError as error:
            named = [key for key in given if re.search(rf"(?<!\w){key}(?!\w)", str(error))]
            problems.append(f"{where(*named)}: {error}")
