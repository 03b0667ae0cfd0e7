"""Where settings are written: flat YAML files and `--key=value` overrides -> entries that know their place."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from simpo.errors import ConfigError

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Entry:
    """One setting as it was written.

    Attributes:
        key: its present name.
        value: what YAML makes of it.
        text: the characters of a scalar, for settings that are text whatever YAML takes them for.
        where: file and line, or the command line.
        written: the name as written.
        given: the value as written.
    """

    key: str
    value: Any
    text: str | None
    where: str
    written: str
    given: Any

    def renamed(self, key: str, value: Any, text: str | None) -> "Entry":
        """The same entry under another name, still telling how it was written."""
        return replace(self, key=key, value=value, text=text)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two changes: `3e-7` is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):  # `{{ ... }}`: the parent says what is wrong with it
                continue
            if key_node.tag != "tag:yaml.org,2002:merge" and key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key_node.value!r} stands twice; keep one", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class Section:
    """A top-level key of a file with sections.

    Attributes:
        entry: the key with its whole value.
        layers: the settings in it, each with its own line: one list for a mapping, and one for each mapping of a list;
            a text, alone or in a list, stands as it is.
    """

    entry: Entry
    layers: list[Entry | list[Entry]]


def read_yaml(path: Path) -> list[Entry]:
    """The settings of one flat YAML file, in its order.

    Raises:
        ConfigError: the file is missing, is no YAML mapping, or holds a setting twice.
    """
    return [section.entry for section in read_sections(path)]


def read_sections(path: Path) -> list[Section]:
    """The keys of a YAML file, in its order; where a value is a mapping, or a list of them, its keys too.

    Raises:
        ConfigError: as `read_yaml`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"settings file {path} does not exist; see training_configs/ for examples") from None
    except IsADirectoryError:
        raise ConfigError(f"settings file {path} cannot be read: it is a folder; name a YAML file in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path} cannot be read as UTF-8 text: {error}") from error
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise ConfigError(f"settings file {path} is empty; write `name: value` lines")
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path}:{root.start_mark.line + 1}: settings must be `name: value` lines")
        entries = _entries(loader, root, path)
        return [
            Section(entry, _layers(loader, node, entry, path))
            for entry, (_, node) in zip(entries, root.value, strict=True)
        ]
    except yaml.YAMLError as error:
        hint = "text with braces or colons, such as a template, needs quotes"
        if " tag " in _reason(error):
            hint = "tags that make objects are refused; write plain text, numbers, lists and mappings"
        raise ConfigError(f"{path}{_line_of(error)}: not valid YAML: {_reason(error)}; {hint}") from error
    finally:
        loader.dispose()


def _layers(loader: _Loader, node: yaml.Node, entry: Entry, path: Path) -> list[Entry | list[Entry]]:
    layers: list[Entry | list[Entry]] = []
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if isinstance(item, yaml.MappingNode):
            if all(isinstance(key, yaml.ScalarNode) for key, _ in item.value):
                layers.append(_entries(loader, item, path))
        elif isinstance(item, yaml.ScalarNode) and item.tag == "tag:yaml.org,2002:str":
            where = f"{path}:{item.start_mark.line + 1}"
            layers.append(Entry(entry.key, item.value, item.value, where, entry.written, item.value))
    return layers


def _entries(loader: _Loader, root: yaml.MappingNode, path: Path) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for key_node, value_node in root.value:
        where = f"{path}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{where}: the name of a setting must be text; if this is a template, put it in quotes")
        key = key_node.value
        if key in entries:
            raise ConfigError(f"{where}: {key} stands twice, first at {entries[key].where}; keep one")
        value = loader.construct_object(value_node, deep=True)
        text = value_node.value if isinstance(value_node, yaml.ScalarNode) else None
        entries[key] = Entry(key, value, text, where, key, value)
    return list(entries.values())


def read_overrides(words: Sequence[str]) -> list[Entry]:
    """The settings of `--key=value` and `--key value` words; a bare `--key` is true, and the last of a name stands.

    Raises:
        ConfigError: a word is no override.
    """
    entries: dict[str, Entry] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.partition("=")
        if not word.startswith("--") or not re.fullmatch(r"[A-Za-z_][\w-]*", name[2:]):
            raise ConfigError(f"{COMMAND_LINE}: {word!r} is no override; write --key=value")
        if not equals:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        key = name[2:].replace("-", "_")
        value = _scalar(text)
        entries.pop(key, None)
        entries[key] = Entry(key, value, text, COMMAND_LINE, f"--{name[2:]}", value)
    return list(entries.values())


def _scalar(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError):  # a chat template, say: not YAML, and meant as it stands
        return text
    finally:
        loader.dispose()


def _line_of(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


def _reason(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]
