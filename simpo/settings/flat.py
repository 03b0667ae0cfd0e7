"""YAML files and `--key=value` overrides -> one dataclass, for verbs with settings of their own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

from simpo.errors import ConfigError
from simpo.settings.entries import COMMAND_LINE, Entry, read_overrides, read_yaml
from simpo.settings.fieldtypes import Misfit, types_of
from simpo.settings.oldnames import show

Paths = str | Path | Sequence[str | Path]
T = TypeVar("T")


def default_of(item: Field[Any]) -> Any:
    """A field's default; `dataclasses.MISSING` where it has none."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def read_flat(owner: type[T], files: Paths, overrides: Sequence[str] = ()) -> T:
    """A dataclass from flat YAML files (a later one wins) and overrides; its own checks run last.

    Args:
        owner: the fields are the settings; those without a default are required. `__post_init__` raises ConfigError
            with a message that begins with the setting's name.
        files: settings files.
        overrides: `--key=value` words; they win over every file.

    Raises:
        ConfigError: with file and line, setting, value, and what to write instead.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    merged: dict[str, Entry] = {}
    for layer in [*(read_yaml(path) for path in paths), read_overrides(overrides)]:
        merged.update((entry.key, entry) for entry in layer)
    return fit_entries(owner, merged, ", ".join(map(str, paths)) or COMMAND_LINE)


def fit_entries(owner: type[T], merged: Mapping[str, Entry], source: str, given: Mapping[str, Any] | None = None) -> T:
    """A dataclass from entries that were read; its own checks run last.

    Args:
        owner: as for `read_flat`.
        merged: setting -> what was written last.
        source: where they come from, for what is missing.
        given: values that nobody writes; the entries have none of them.

    Raises:
        ConfigError: as `read_flat`.
    """
    given = given or {}
    problems, values = _typed(owner, merged)
    needed = [item.name for item in fields(owner) if default_of(item) is MISSING]  # type: ignore[arg-type]
    problems += [f"{source}: {key} is missing" for key in needed if key not in merged and key not in given]
    if problems:
        head = f"{len(problems)} settings are wrong\n  " if len(problems) > 1 else ""
        raise ConfigError(head + "\n  ".join(problems))
    try:
        return owner(**values, **given)
    except ConfigError as error:
        key = str(error).partition(":")[0]
        raise ConfigError(f"{merged[key].where if key in merged else source}: {error}") from error


def _typed(owner: type, merged: Mapping[str, Entry]) -> tuple[list[str], dict[str, Any]]:
    types = types_of(owner)
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, entry in merged.items():
        if key not in types:
            close = difflib.get_close_matches(key.lower(), types, n=1)
            advice = f"did you mean {close[0]!r}?" if close else "the documentation of the verb lists the settings"
            problems.append(f"{entry.where}: unknown setting {key!r}; {advice}")
            continue
        try:
            values[key] = types[key].fit(entry.value, entry.text)
        except Misfit as misfit:
            fault = "is unknown" if types[key].choices else "has the wrong type"
            problems.append(
                f"{entry.where}: {entry.written}: {show(entry.given, key)} {fault}: write {misfit.expected}"
            )
    return problems, values
