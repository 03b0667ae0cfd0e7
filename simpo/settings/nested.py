"""A mapping that is itself the value of a setting -> one dataclass, checked like the settings around it."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from simpo.errors import ConfigError
from simpo.settings.fieldtypes import Misfit, types_of
from simpo.settings.flat import default_of
from simpo.settings.oldnames import show

T = TypeVar("T")


def fit_mapping(owner: type[T], values: Mapping[str, Any], name: str) -> T:
    """A dataclass of what a mapping holds.

    Args:
        owner: its fields are the keys; those without a default are required.
        values: as YAML has them.
        name: of the setting, for messages.

    Raises:
        ConfigError: a key is unknown or missing, a value of the wrong type or out of bounds; all of them at once.
    """
    types, problems, fitted = types_of(owner), list[str](), dict[str, Any]()
    for key, value in values.items():
        if key not in types:
            problems.append(f"unknown setting {key!r}; {nearest(str(key), types)}")
            continue
        try:
            fitted[key] = types[key].fit(value, None)
        except Misfit as misfit:
            fault = "is unknown" if types[key].choices else "has the wrong type"
            problems.append(f"{key}: {show(value, key)} {fault}: write {misfit.expected}")
    needed = [item.name for item in fields(owner) if default_of(item) is MISSING]  # type: ignore[arg-type]
    problems += [f"{key} is missing; write {types[key].expected}" for key in needed if key not in values]
    if problems:
        raise ConfigError(f"{name}: " + f"\n  {name}: ".join(problems))
    try:
        return owner(**fitted)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def nearest(key: str, names: Collection[str]) -> str:
    """What to write in place of an unknown name."""
    close = difflib.get_close_matches(key.lower().replace("-", "_"), list(names), n=1)
    return f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(names)}"
