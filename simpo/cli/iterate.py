"""`simpo iterate CONFIG --rounds K`: rounds of on-policy data and training."""

import argparse

from simpo.cli.launch import launch_config, launches
from simpo.cli.onpolicy import FLAGS as PIPELINE_FLAGS
from simpo.cli.onpolicy import add_pipeline_options
from simpo.cli.words import Flag, Verbs, add_verb, count

HELP = """\
Rounds of responses of the policy, scores, pairs, training and evaluation; the next round takes the policy that was
trained. Killed at any moment and started again, it goes on; a larger K adds rounds:
  simpo iterate training_configs/onpolicy/llama-3-8b-instruct.yaml --rounds 3
"""

FLAGS = PIPELINE_FLAGS | {"--rounds": Flag("needed")}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "iterate",
        run,
        summary="rounds of on-policy data, training and evaluation",
        description=HELP,
        epilog="The file is described in docs/on-policy.md.",
        usage="simpo iterate CONFIG [CONFIG ...] --rounds K [options] [--section.key=value ...]",
    )
    add_pipeline_options(parser)
    parser.add_argument("--rounds", type=count, required=True, metavar="K", help="how many rounds there are to be")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Run the steps that are not finished."""
    from simpo.onpolicy.iterate import run_iterate
    from simpo.onpolicy.recipe import Launch

    launch = Launch(args.accelerate, args.num_processes) if launches(args) else None
    run_iterate(args.configs, overrides, args.rounds, launch_config=launch_config, launch=launch, dry_run=args.dry_run)
