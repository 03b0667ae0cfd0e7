"""`simpo train CONFIG`: one run from settings to a finished folder."""

import argparse
import sys

from simpo.cli.launch import launch_run, launches
from simpo.cli.run_options import RUN_FLAGS, add_run_options, resume_from, run_words
from simpo.cli.signals import ended_by_signals
from simpo.cli.words import Flag, Verbs, add_verb
from simpo.errors import Lost

HELP = """\
Train a model from one flat YAML file of settings, or several of which a later one wins.

Every setting can be overridden as --key=value, for instance:
  simpo train training_configs/llama-3-8b-instruct-simpo-v2.yaml --learning_rate=8e-7 --output_dir=outputs/try-2
"""

FLAGS = RUN_FLAGS | {name: Flag("none") for name in ("--no-audit", "--strict", "--no-report")}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "train",
        run,
        summary="train a model from a YAML file of settings",
        description=HELP,
        epilog="Settings are described in docs/configuration.md.",
        usage="simpo train CONFIG [CONFIG ...] [options] [--key=value ...]",
    )
    add_run_options(parser)
    parser.add_argument(
        "--no-audit", action="store_true", help="skip the checks of `simpo inspect` on a sample of the data"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="count warnings about settings and data as errors",
    )
    parser.add_argument("--no-report", action="store_true", help="leave out report.html; simpo report makes it later")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Train, or hand over to the launcher."""
    with ended_by_signals():
        if launches(args):
            from simpo.settings import check_settings

            flags = {"--no-audit": args.no_audit, "--strict": args.strict, "--no-report": args.no_report}
            own = [name for name, given in flags.items() if given]
            launch_run("train", args, overrides, check_settings, run_words(args) + own)
            return
        from accelerate import PartialState

        from simpo.settings import read_settings

        settings = read_settings(args.configs, overrides)
        resume = resume_from(args.resume_from_checkpoint)
        if resume is None:
            resume = settings.training.resume_from_checkpoint

        from simpo.run import run_training

    folder = str(settings.training.output_dir)
    wanted = not (args.dry_run or args.no_report) and settings.training.process_index == 0
    try:
        run_training(
            settings,
            dry_run=args.dry_run,
            overwrite=args.overwrite,
            resume_from_checkpoint=resume,
            audit=not args.no_audit,
            strict=args.strict,
        )
    except Lost:  # the page shows how it came to it
        if wanted:
            _report(folder)
        PartialState().wait_for_everyone()  # a launcher ends all processes, this one too, as soon as one has left
        raise
    if wanted:
        _report(folder)


def _report(folder: str) -> None:
    """The page about the run. It is there whatever becomes of the page, so a failure is told and no more."""
    try:
        from simpo.analysis.report.run_report import write_report

        print(f"Report: {write_report([folder])}", flush=True)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"No report: {said}; try again with: simpo report {folder}", file=sys.stderr, flush=True)
