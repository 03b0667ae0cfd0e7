"""`simpo sft CONFIG`: the supervised stage before preferences."""

import argparse

from simpo.cli.launch import launch_run, launches
from simpo.cli.run_options import RUN_FLAGS, add_run_options, resume_from, run_words
from simpo.cli.signals import ended_by_signals
from simpo.cli.words import Verbs, add_verb

HELP = """\
Supervised fine-tuning of a base model on conversations; the saved model starts a SimPO run.

Every setting can be overridden as --key=value, for instance:
  simpo sft training_configs/sft/mistral-7b-base-sft.yaml --learning_rate=1e-5 --output_dir=outputs/my-sft
"""

FLAGS = RUN_FLAGS


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "sft",
        run,
        summary="supervised fine-tuning of a base model, before SimPO",
        description=HELP,
        epilog="Settings are described in docs/sft.md.",
        usage="simpo sft CONFIG [CONFIG ...] [options] [--key=value ...]",
    )
    add_run_options(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Fine-tune, or hand over to the launcher."""
    with ended_by_signals():
        from simpo.run.sft import check_sft_settings, read_sft_settings, run_sft

        if launches(args):
            launch_run("sft", args, overrides, check_sft_settings, run_words(args))
            return
        settings = read_sft_settings(args.configs, overrides)
        resume = resume_from(args.resume_from_checkpoint)
        if resume is None:
            resume = settings.training.resume_from_checkpoint
    run_sft(settings, dry_run=args.dry_run, overwrite=args.overwrite, resume_from_checkpoint=resume)
