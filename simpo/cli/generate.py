"""`simpo generate CONFIG`: responses of the policy to prompts."""

import argparse

from simpo.cli.launch import LAUNCH_FLAGS, add_launch_options, launches, relaunch
from simpo.cli.words import Verbs, add_verb

HELP = """\
Sample several responses of the policy to each prompt; killed and started again, it goes on. For instance:
  simpo generate generate.yaml --output_dir=outputs/responses
"""

FLAGS = LAUNCH_FLAGS


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "generate",
        run,
        summary="sample responses of the policy to prompts",
        description=HELP,
        epilog="Settings and engines are described in docs/on-policy.md.",
        usage="simpo generate CONFIG [CONFIG ...] [options] [--key=value ...]",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML file of settings")
    add_launch_options(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Sample, or hand over to the launcher."""
    from simpo.onpolicy.settings import read_generate_settings

    if launches(args):
        relaunch("generate", args, overrides, read_generate_settings, [])
        return
    settings = read_generate_settings(args.configs, overrides)

    from simpo.onpolicy.generate import run_generate

    run_generate(settings)
