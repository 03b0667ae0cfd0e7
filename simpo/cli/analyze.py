"""`simpo analyze --models A B --data PAIRS`: models on the same pairs, in numbers and pictures."""

import argparse
from pathlib import Path

from simpo.cli.launch import LAUNCH_FLAGS, add_launch_options, launches, relaunch
from simpo.cli.words import Flag, Verbs, add_verb, count
from simpo.errors import ConfigError

HELP = """\
What training did to models, on the same held-out pairs: accuracies, margins, log-probs against length, distance to the
initial policy, and greedy answers, as tables, pictures and one page. For instance:
  simpo analyze --models outputs/simpo outputs/dpo --data data/test.jsonl --output outputs/analysis
  simpo analyze --models outputs/simpo --data data/test.jsonl --initial outputs/sft --max-samples 500 --prompts 0

Scores stay in the output folder: the same command again draws again and scores only what has changed. Settings of
`simpo eval pairs` can be given as --key=value.
"""

FLAGS = LAUNCH_FLAGS | {
    "--models": Flag("several"),
    "--names": Flag("several"),
    "--data": Flag("needed"),
    "--initial": Flag("needed"),
    "--output": Flag("needed"),
    "--prompts": Flag("needed"),
    "--max-new-tokens": Flag("needed"),
}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "analyze",
        run,
        summary="what training did: models on the same pairs, in tables, pictures and a page",
        description=HELP,
        epilog="What each number and figure says is described in docs/analysis.md.",
        usage="simpo analyze --models MODEL [MODEL ...] --data PAIRS [options] [--key=value ...]",
    )
    many = {"action": "append", "default": [], "metavar": "..."}
    parser.add_argument("--models", **many, help="hub names or directories, of runs, checkpoints or adapters")  # type: ignore[arg-type]
    parser.add_argument("--names", **many, help="what they are called in tables and pictures; one for each model")  # type: ignore[arg-type]
    parser.add_argument("--data", metavar="PAIRS", help="held-out pairs: a file or hub name; short for --dataset_name")
    parser.add_argument(
        "--initial",
        metavar="MODEL",
        help="the policy that training began with, or none; left out: what the models' own runs say",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/analysis"), metavar="DIR", help="default: outputs/analysis"
    )
    parser.add_argument(
        "--prompts", type=count, default=16, metavar="N", help="prompts that are answered greedily; 0 for none"
    )
    parser.add_argument(
        "--max-new-tokens", type=count, default=512, metavar="N", help="bound of an answer (default: 512)"
    )
    add_launch_options(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Analyze, or hand over to the launcher."""
    if not args.models:
        raise ConfigError("--models: is missing; name one model or more")
    if args.data is not None:
        overrides = [f"--dataset_name={args.data}", *overrides]

    if not any(word.startswith(("--dataset_name", "--dataset_mixer")) for word in overrides):
        raise ConfigError("--data: is missing; name held-out pairs, a file or a hub name")

    from simpo.cli.analysis_plan import Plan
    from simpo.cli.analysis_run import analyze

    def plan(given: list[str]) -> Plan:
        return Plan.of(
            args.models,
            args.names,
            given,
            initial=args.initial,
            output=args.output,
            prompts=args.prompts,
            max_new_tokens=args.max_new_tokens,
        )

    if launches(args):
        options = [f"--{key}={value}" for key in ("models", "names") for value in getattr(args, key)]
        options += [f"--output={args.output}", f"--prompts={args.prompts}", f"--max-new-tokens={args.max_new_tokens}"]
        options += [f"--initial={args.initial}"] if args.initial is not None else []
        args.configs = []
        relaunch("analyze", args, overrides, lambda _, given: plan(list(given)), options)
        return
    analyze(plan(overrides))
