"""`simpo onpolicy CONFIG`: prompts to preference pairs in one command."""

import argparse

from simpo.cli.launch import LAUNCH_FLAGS, add_launch_options, launch_config, launches
from simpo.cli.words import Flag, Verbs, add_verb

HELP = """\
Sample responses, score them and make pairs, by one file with a section for each step. Killed at any moment and
started again, it goes on:
  simpo onpolicy training_configs/onpolicy/llama-3-8b-instruct.yaml --accelerate multi_gpu
"""

FLAGS = LAUNCH_FLAGS | {"--dry-run": Flag("none")}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "onpolicy",
        run,
        summary="generate, annotate and binarize in one command",
        description=HELP,
        epilog="The file is described in docs/on-policy.md.",
        usage="simpo onpolicy CONFIG [CONFIG ...] [options] [--section.key=value ...]",
    )
    add_pipeline_options(parser)


def add_pipeline_options(parser: argparse.ArgumentParser) -> None:
    """The options of `FLAGS`, and CONFIG."""
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML file with a section for each step")
    add_launch_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be run, and stop")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Run the steps that are not finished."""
    from simpo.onpolicy.pipeline import run_onpolicy
    from simpo.onpolicy.recipe import Launch

    launch = Launch(args.accelerate, args.num_processes) if launches(args) else None
    run_onpolicy(args.configs, overrides, launch_config=launch_config, launch=launch, dry_run=args.dry_run)
