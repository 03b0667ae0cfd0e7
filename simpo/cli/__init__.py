"""`simpo VERB`: arguments are read first; torch, transformers and the settings are imported when a verb runs."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from simpo import __version__
from simpo.cli import (
    analyze,
    annotate,
    binarize,
    chat,
    compare,
    evaluate,
    generate,
    inspection,
    iterate,
    onpolicy,
    plan,
    reference,
    report,
    sft,
    sweep,
    train,
)
from simpo.cli.words import Flag, Verbs, split_overrides
from simpo.errors import ConfigError, Interrupted, SimPOError
from simpo.redact import redact_text


class Verb(Protocol):
    """What the file of a verb holds. At module level it imports nothing that is slow to import."""

    FLAGS: dict[str, Flag]  # its own options but --help; any other --key is an override of a setting

    def add(self, verbs: Verbs) -> None:
        """Add the parser of its options, with `add_verb`."""

    def run(self, args: argparse.Namespace, overrides: list[str]) -> None:
        """Do it; the place for every import of settings, torch and what needs them."""


# In the order of `simpo --help`.
VERBS: dict[str, Verb] = {
    "train": train,
    "sft": sft,
    "inspect": inspection,
    "plan": plan,
    "generate": generate,
    "annotate": annotate,
    "binarize": binarize,
    "onpolicy": onpolicy,
    "iterate": iterate,
    "eval": evaluate,
    "compare": compare,
    "analyze": analyze,
    "report": report,
    "chat": chat,
    "reference": reference,
    "sweep": sweep,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; 0 when it succeeded, 2 after an error that the user can correct, 75 to be started again."""
    words = list(sys.argv[1:] if argv is None else argv)
    overrides: list[str] = []
    if words and words[0] in VERBS:
        own, overrides = split_overrides(words[1:], VERBS[words[0]].FLAGS)
        words = [words[0], *own]
    args = _parser().parse_args(words)
    run: Callable[[argparse.Namespace, list[str]], None] = args.run
    try:
        run(args, overrides)
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr)
        return error.exit_code
    except SimPOError as error:
        rank = os.environ.get("RANK", "0")
        # A mistake in the settings is the same on every process: one of them says it.
        if rank == "0" or not isinstance(error, ConfigError):
            said = redact_text(str(error))
            print(f"error: {said}" if rank == "0" else f"error (process {rank}): {said}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; make room, then give the same command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simpo", description="Reference-free preference optimisation (SimPO).")
    parser.add_argument("--version", action="version", version=f"simpo {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS.values():
        verb.add(verbs)
    return parser
