"""`simpo binarize CONFIG`: scored responses to a preference data set."""

import argparse

from simpo.cli.words import Flag, Verbs, add_verb

HELP = """\
Make pairs of sampled responses by their scores, as a data set that `simpo train` reads as it is:
  simpo binarize --generations=outputs/responses --scores=outputs/scores --output_dir=outputs/pairs --test_size=0.02
"""

FLAGS = {"--overwrite": Flag("none")}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "binarize",
        run,
        summary="make preference pairs of scored responses",
        description=HELP,
        epilog="Settings are described in docs/on-policy.md.",
        usage="simpo binarize [CONFIG ...] [--overwrite] [--key=value ...]",
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="YAML file of settings")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of an earlier call")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Make the data set."""
    from simpo.onpolicy.binarize import BinarizeSettings, run_binarize
    from simpo.settings.flat import read_flat

    run_binarize(read_flat(BinarizeSettings, args.configs, overrides), overwrite=args.overwrite)
