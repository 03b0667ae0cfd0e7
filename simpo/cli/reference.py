"""`simpo reference CONFIG`: log-probs of the initial policy, ahead of the runs that use them."""

import argparse

from simpo.cli.launch import LAUNCH_FLAGS, add_launch_options, launches, relaunch
from simpo.cli.words import Verbs, add_verb

HELP = """\
Compute and keep the log-probs of the initial policy (DPO, IPO, KTO, R-DPO, or log_kl: true) on a run's data. `simpo
train` does this by itself; alone it serves to do it once for several runs:
  simpo reference training_configs/llama-3-8b-base-simpo.yaml training_configs/objectives/dpo.yaml --accelerate zero3
"""

FLAGS = LAUNCH_FLAGS


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "reference",
        run,
        summary="compute the log-probs of the initial policy that a run will use",
        description=HELP,
        epilog="Objectives are described in docs/objectives.md.",
        usage="simpo reference CONFIG [CONFIG ...] [options] [--key=value ...]",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML file of settings")
    add_launch_options(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Compute them, or hand over to the launcher."""
    from simpo.settings import check_settings, read_settings

    if launches(args):
        relaunch("reference", args, overrides, check_settings, [])
        return
    settings = read_settings(args.configs, overrides)

    from simpo.run import run_reference

    run_reference(settings)
