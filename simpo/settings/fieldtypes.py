"""Types of settings: the annotations of the settings dataclasses as checks of YAML values."""

import difflib
import types
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from simpo.config import DataConfig, ModelSettings, PreferenceConfig
from simpo.settings.oldnames import show


class Misfit(ValueError):
    """A value does not have the type of its setting; `expected` says in words what has."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


@dataclass(frozen=True)
class FieldType:
    """The dataclass that a setting belongs to, its annotation, and the values it is limited to, if any."""

    owner: type
    annotation: Any
    choices: tuple[str, ...] = ()

    @classmethod
    def of_number(cls) -> "FieldType":
        """The type of a number that no dataclass holds."""
        return cls(PreferenceConfig, float)

    def fit(self, value: Any, text: str | None) -> Any:
        """`value` as the setting's type; where that fails, the `text` it was written as.

        So `run_name: 2024-01-01`, `model_revision: 12e4567` and `save_strategy: no` mean what they say, although YAML
        reads a date, a number and a boolean.

        Raises:
            Misfit: neither fits.
        """
        try:
            return self._validate(value)
        except Misfit:
            if text is None or value is None:
                raise
            return self._validate(text)

    def _validate(self, value: Any) -> Any:
        parts = _parts(self.annotation)
        if self.choices and not (value is None and type(None) in parts) and value not in self.choices:
            raise Misfit(self._expected_near(value))
        is_boolean = bool in parts or any(get_origin(part) is Literal for part in parts)
        if isinstance(value, bool) and not is_boolean:  # pydantic would take true for the number 1
            raise Misfit(self.expected)
        try:
            return _adapter(self.owner, self.annotation).validate_python(value)
        except ValidationError:
            raise Misfit(self.expected) from None

    def _expected_near(self, value: Any) -> str:
        text = str(value)
        longer = [choice for choice in self.choices if text and choice.startswith(text)]
        close = longer[:3] or difflib.get_close_matches(text, self.choices, n=3)
        if len(self.choices) > 15 and close:  # optimizers: too many to read
            return f"one of {', '.join(close)}, or another of the {len(self.choices)} that transformers has"
        return self.expected

    @property
    def fault(self) -> str:
        """What is wrong with a value that does not fit, in words."""
        named = self.choices or any(get_origin(part) is Literal for part in _parts(self.annotation))
        return "is unknown" if named else "has the wrong type"

    @property
    def expected(self) -> str:
        """What may be written, in words."""
        if self.choices:
            nothing = ", or null" if type(None) in _parts(self.annotation) else ""
            return "one of " + ", ".join(self.choices) + nothing
        return describe(self.annotation)


@cache
def field_types() -> dict[str, FieldType]:
    """Every setting of a preference run by its name."""
    return types_of(ModelSettings, DataConfig, PreferenceConfig)


def types_of(*owners: type) -> dict[str, FieldType]:
    """The settings of some dataclasses by their names, which none of them share."""
    found: dict[str, FieldType] = {}
    for owner in owners:
        hints = get_type_hints(owner)
        for item in fields(owner):
            if not item.init:
                continue
            assert item.name not in found, f"{item.name} belongs to {found[item.name].owner} and {owner}"
            annotation = hints[item.name]
            choices = _closed_choices(annotation) or tuple(item.metadata.get("choices", ()))
            found[item.name] = FieldType(owner, annotation, choices)
    return found


@cache
def _adapter(owner: type, annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))


def _parts(annotation: Any) -> Sequence[Any]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _closed_choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    # transformers annotates `SchedulerType | str`, but takes the enum's values only.
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, Enum):
            return tuple(str(member.value) for member in part)
    return ()


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a mapping",
    list: "a list",
    type(None): "null",
    Any: "anything",
}


def describe(annotation: Any) -> str:
    """An annotation in words: `list[str] | None` -> `a list of text, or null`."""
    parts = _parts(annotation)
    if len(parts) > 1:
        words = [describe(part) for part in parts]
        return ", ".join(words[:-1]) + f", or {words[-1]}"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(show(argument) for argument in arguments)
    if origin is list:
        return f"a list of {describe(arguments[0])}"
    if origin is dict:
        return f"a mapping of {describe(arguments[0])} to {describe(arguments[1])}"
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
