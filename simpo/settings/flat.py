"""Flat YAML files (a later one wins) plus overrides -> one dataclass of settings, for verbs that do not train."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from simpo.errors import ConfigError
from simpo.settings.entries import COMMAND_LINE, Entry, read_overrides, read_yaml
from simpo.settings.fieldtypes import FieldType, Misfit, types_of
from simpo.settings.oldnames import show

T = TypeVar("T")


def read_flat(owner: type[T], files: Sequence[str | Path], overrides: Sequence[str], page: str) -> T:
    """Read, check and build a dataclass of settings.

    Args:
        owner: its fields are the settings; its `__post_init__` raises ConfigError for values out of bounds.
        files: settings files; a setting in a later one replaces that of an earlier one.
        overrides: `--key=value` or `--key value`; they win over every file. Values are YAML.
        page: where the settings are described.

    Raises:
        ConfigError: a file cannot be read, a setting is unknown, missing, of the wrong type or out of bounds. The
            message names file and line, setting, value, and what to write instead.
    """
    types, merged, problems = types_of(owner), dict[str, Entry](), list[str]()
    for layer in [*(read_yaml(Path(file)) for file in files), read_overrides(overrides)]:
        for entry in layer:
            if entry.key in types:
                merged[entry.key] = entry
            else:
                problems.append(f"{entry.where}: unknown setting {entry.key!r}; {nearest(entry.key, types, page)}")
    source = ", ".join(map(str, files)) or COMMAND_LINE
    problems += [f"{source}: {name} is missing; write {types[name].expected}" for name in _missing(owner, merged)]
    values = {key: _fit(entry, types[key], problems) for key, entry in merged.items()}
    _stop_if_any(problems)
    try:
        return owner(**values)
    except ConfigError as error:
        named = [key for key in merged if re.search(rf"(?<![\w/]){key}(?!\w)", str(error))]
        raise ConfigError(f"{merged[named[0]].where if named else source}: {error}") from error


def fit_mapping(owner: type[T], values: Mapping[str, Any], name: str, page: str) -> T:
    """A dataclass of the settings in a mapping that is itself the value of a setting.

    Raises:
        ConfigError: as `read_flat`; without file and line, and with `name.` before the names of settings.
    """
    types, problems = types_of(owner), list[str]()
    for key in values:
        if key not in types:
            problems.append(f"{name}: unknown setting {key!r}; {nearest(str(key), types, page)}")
    known = {key: Entry(key, value, None, name, key, value) for key, value in values.items() if key in types}
    problems += [f"{name}: {key} is missing; write {types[key].expected}" for key in _missing(owner, known)]
    fitted = {key: _fit(entry, types[key], problems) for key, entry in known.items()}
    _stop_if_any(problems)
    try:
        return owner(**fitted)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def nearest(key: str, names: Mapping[str, Any] | Sequence[str], page: str) -> str:
    """What to write in place of an unknown name."""
    close = difflib.get_close_matches(key.lower().replace("-", "_"), list(names), n=1)
    return f"did you mean {close[0]!r}?" if close else f"no setting has a similar name; {page} lists them"


def _missing(owner: type, given: Mapping[str, Entry]) -> list[str]:
    required = [item for item in fields(owner) if item.default is MISSING and item.default_factory is MISSING]
    return [item.name for item in required if item.name not in given]


def _fit(entry: Entry, kind: FieldType, problems: list[str]) -> Any:
    try:
        return kind.fit(entry.value, entry.text)
    except Misfit as misfit:
        fault = "is unknown" if kind.choices else "has the wrong type"
        problems.append(f"{entry.where}: {entry.written}: {show(entry.given)} {fault}: write {misfit.expected}")
        return None


def _stop_if_any(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{len(problems)} settings are wrong\n  " + "\n  ".join(problems))
