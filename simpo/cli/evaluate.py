"""`simpo eval BENCHMARK --model MODEL`: a model on a benchmark."""

import argparse

from simpo.cli.launch import LAUNCH_FLAGS, add_launch_options, launches, relaunch
from simpo.cli.words import Flag, Verbs, add_verb

# Names only: what they need is imported when one is run.
BENCHMARKS = ("alpaca_eval", "arena_hard", "mt_bench", "downstream", "pairs")

HELP = """\
Evaluate a model as published: answers and judgments, leaderboard tasks, or preference pairs. For instance:
  simpo eval alpaca_eval --model outputs/my-run --judge none
  simpo eval arena_hard --model outputs/my-run --judge=my-judge --judge_urls='[http://localhost:8000/v1]'
  simpo eval pairs --model outputs/my-run --dataset_name=data/pairs.jsonl

Every setting can be given as --key=value, or in YAML files. The same command goes on with what was interrupted.
"""

FLAGS = LAUNCH_FLAGS | {"--model": Flag("needed")}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "eval",
        run,
        summary="a model on a benchmark: answers, judgments, results",
        description=HELP,
        epilog="Benchmarks and settings are described in docs/evaluation.md.",
        usage="simpo eval BENCHMARK --model MODEL [CONFIG ...] [options] [--key=value ...]",
    )
    parser.add_argument("benchmark", choices=BENCHMARKS, metavar="BENCHMARK", help=", ".join(BENCHMARKS))
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="YAML file of settings")
    parser.add_argument("--model", metavar="MODEL", help="hub name or directory; short for --model_name_or_path")
    add_launch_options(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Evaluate, or hand over to the launcher."""
    from simpo.evals.run import read_eval_settings, run_eval

    if args.model is not None:
        overrides = [f"--model_name_or_path={args.model}", *overrides]
    if launches(args):
        args.configs = [args.benchmark, *args.configs]
        relaunch("eval", args, overrides, lambda words, given: read_eval_settings(words[0], words[1:], given), [])
        return
    run_eval(read_eval_settings(args.benchmark, args.configs, overrides))
