"""The words of a command line: a verb's own options, and overrides of settings."""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Flag(NamedTuple):
    """How an option takes a value: `none`, `needed`, `several` (one word after another, up to the next option), or
    `optional` (only as --flag=value; alone it means true)."""

    value: str


def add_verb(
    verbs: Verbs,
    name: str,
    run: Callable[[argparse.Namespace, list[str]], None],
    *,
    summary: str,
    description: str,
    epilog: str,
    usage: str,
) -> argparse.ArgumentParser:
    """The parser of a new verb, still without options. `summary` is its line in `simpo --help`."""
    parser = verbs.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=usage,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def split_overrides(words: Sequence[str], flags: dict[str, Flag]) -> tuple[list[str], list[str]]:
    """Divide a verb's words into its own (options in one spelling, and files) and `--key=value` overrides.

    A word after a bare `--key` is its value unless it begins with `--`; a bare `--key` before another option is true.
    `-` and `_` are the same in names; every verb has `--help`.
    """
    flags = {**flags, "--help": Flag("none")}
    spelled = {name.replace("-", "_"): name for name in flags}
    own: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            own.append(word)
            continue
        name, equals, value = word.partition("=")
        option = spelled.get(name.replace("-", "_"))
        if option is None:
            if not equals:
                value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
            overrides.append(f"{name}={value}")
        elif equals:
            own.append(f"{option}={value}")
        elif flags[option].value == "needed" and rest:
            own.append(f"{option}={rest.pop(0)}")
        elif flags[option].value == "several":
            while rest and not rest[0].startswith("--"):
                own.append(f"{option}={rest.pop(0)}")
        elif flags[option].value == "optional":
            # The next word is a checkpoint unless it can only be a settings file or an option.
            given = rest and not rest[0].startswith("-") and not rest[0].endswith((".yaml", ".yml"))
            own.append(f"{option}={rest.pop(0) if given else 'true'}")
        else:
            own.append(option)
    return own, overrides


def count(word: str) -> int:
    """The type of an option that is a whole number, 0 or more."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} must be a whole number, 0 or more")
    return int(word)
