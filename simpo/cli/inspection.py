"""`simpo inspect CONFIG`: the data as training would see them."""

import argparse
import json
from pathlib import Path

from simpo.cli.words import Flag, Verbs, add_verb, count
from simpo.errors import ConfigError

HELP = """\
Tokenise as training would, show some pairs as tokens, and check the data. Without CONFIG give --model and --data:
  simpo inspect --model meta-llama/Meta-Llama-3-8B-Instruct --data data/pairs.jsonl --html report.html
"""

FLAGS = {
    "--model": Flag("needed"),
    "--data": Flag("needed"),
    "--eval-prompts": Flag("needed"),
    "--html": Flag("needed"),
    "--json": Flag("needed"),
    "--pairs": Flag("needed"),
    "--rows": Flag("needed"),
    "--sample": Flag("needed"),
    "--strict": Flag("none"),
}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "inspect",
        run,
        summary="show and check the data as training would see them",
        description=HELP,
        epilog="The checks, and what to do about each, are described in docs/data.md.",
        usage="simpo inspect [CONFIG ...] [--model NAME] [--data SOURCE] [options] [--key=value ...]",
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="YAML file of settings")
    parser.add_argument("--model", metavar="NAME", help="model_name_or_path: a hub name or a directory")
    parser.add_argument("--data", metavar="SOURCE", help="train on this one source, whole")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as one self-contained page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers and findings")
    parser.add_argument("--strict", action="store_true", help="count warnings as errors")
    parser.add_argument("--pairs", type=count, default=3, metavar="N", help="pairs to show as tokens (default: 3)")
    parser.add_argument(
        "--rows", type=_rows, default=(), metavar="A,B,...", help="training rows to show in place of these"
    )
    parser.add_argument("--sample", type=count, metavar="N", help="look at no more than N rows of each set")
    parser.add_argument(
        "--eval-prompts",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="look for the prompts of an evaluation set in the training pairs; can be given several times",
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Look at the data and report; a ConfigError when the options do not say which."""
    if not args.configs and not (args.model and args.data):
        raise ConfigError("nothing to inspect: write simpo inspect CONFIG, or simpo inspect --model NAME --data SOURCE")
    named = dict(entry.partition("=")[::2] for entry in args.eval_prompts)
    if not all(name and path for name, path in named.items()):
        raise ConfigError("--eval-prompts needs a name and a file; write e.g. --eval-prompts gsm8k=gsm8k.jsonl")
    if args.sample == 0:
        raise ConfigError("--sample 0 leaves nothing to look at; write 1 or more")
    from simpo.settings import read_settings

    # no device is needed, and that of the run may be missing here
    settings = read_settings(args.configs, [*source_overrides(args), *overrides, "--use_cpu=true"])

    from simpo.audit.inspect import InspectOptions, run_inspection

    run_inspection(
        settings, InspectOptions(args.html, args.json, args.strict, args.pairs, args.rows, args.sample, named)
    )


def _rows(word: str) -> tuple[int, ...]:
    numbers = word.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{word!r} must be row numbers from 0 on; write e.g. --rows 0,12")
    return tuple(map(int, numbers))


def source_overrides(args: argparse.Namespace) -> list[str]:
    """What --model and --data of `simpo inspect` stand for."""
    overrides = [f"--model_name_or_path={args.model}"] if args.model else []
    if args.data:
        # what a CONFIG says about its own sources does not hold for this one
        overrides += [f"--dataset_mixer={json.dumps({args.data: 1.0})}", "--eval_dataset_mixer=null"]
        overrides += [f"--{key}=null" for key in ("dataset_name", "dataset_configs", "dataset_weights")]
    return overrides
