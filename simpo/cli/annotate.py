"""`simpo annotate CONFIG`: scores for sampled responses."""

import argparse

from simpo.cli.launch import LAUNCH_FLAGS, add_launch_options, launches, relaunch
from simpo.cli.words import Verbs, add_verb

HELP = """\
Score every response of `simpo generate` by reward models, PairRM, a judge or a Python function. The same command
goes on with a call that was interrupted:
  simpo annotate annotate.yaml --accelerate multi_gpu
"""

FLAGS = LAUNCH_FLAGS


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "annotate",
        run,
        summary="score sampled responses",
        description=HELP,
        epilog="Settings are described in docs/on-policy.md.",
        usage="simpo annotate CONFIG [CONFIG ...] [options] [--key=value ...]",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML file of settings")
    add_launch_options(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Score them, or hand over to the launcher."""
    from simpo.onpolicy.annotate import AnnotateSettings, run_annotate
    from simpo.settings.flat import read_flat

    def check(files: object, words: object) -> AnnotateSettings:
        return read_flat(AnnotateSettings, args.configs, overrides)

    if launches(args):
        relaunch("annotate", args, overrides, check, [])
        return
    run_annotate(check(args.configs, overrides))
