"""`simpo plan CONFIG`: memory, time and cost of a run before it is started."""

import argparse
import math
from pathlib import Path

from simpo.cli.launch import launch_config
from simpo.cli.words import Flag, Verbs, add_verb, count
from simpo.errors import ConfigError

HELP = """\
What a run needs, from the model's config alone: no weights are read and no GPU is needed.
  simpo plan training_configs/llama-3-8b-instruct-simpo-v2.yaml --gpus 8 --gpu h100-80gb --price 2.5
"""

FLAGS = {
    name: Flag("needed")
    for name in (
        "--gpus", "--gpu", "--engine", "--launch-config", "--memory", "--tflops", "--bandwidth", "--price",
        "--mean-tokens", "--pairs", "--utilisation", "--json",
    )
}  # fmt: skip


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "plan",
        run,
        summary="memory, time and cost of a run before it is started",
        description=HELP,
        epilog="How the numbers are found, and what was measured, is described in docs/planning.md.",
        usage="simpo plan CONFIG [CONFIG ...] [--gpus N] [--gpu NAME ...] [options] [--key=value ...]",
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="YAML file of settings")
    parser.add_argument("--gpus", type=count, metavar="N", help="how many (default: 8, or those of --launch-config)")
    parser.add_argument(
        "--gpu",
        action="append",
        metavar="NAME",
        help="h100-80gb (default), a100-80gb, h200, b200, l40s, rtx4090 or cpu; more than once: side by side",
    )
    parser.add_argument(
        "--engine", metavar="NAME", help="single, ddp, zero2, zero3 or fsdp2 (default: zero3, single on one GPU)"
    )
    parser.add_argument(
        "--launch-config", metavar="NAME_OR_PATH", help="engine and GPUs of an accelerate configuration instead"
    )
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of the GPU, in place of the table's")
    parser.add_argument("--tflops", type=float, metavar="TFLOPS", help="its dense bf16 peak")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="bandwidth of its memory")
    parser.add_argument("--price", type=float, metavar="PRICE", help="of one GPU for an hour")
    parser.add_argument(
        "--mean-tokens",
        type=_lengths,
        metavar="P,C,R",
        help="mean tokens of prompt, chosen, rejected; reads no data",
    )
    parser.add_argument("--pairs", type=count, metavar="N", help="pairs of an epoch")
    parser.add_argument("--utilisation", type=float, metavar="PART", help="of the dense bf16 peak (default: 0.3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Plan; a ConfigError when the options contradict each other."""
    if args.engine is not None and args.launch_config is not None:
        raise ConfigError("--engine and --launch-config both name an engine; keep one")
    names = args.gpu or ["h100-80gb"]
    if len(names) > 1 and (args.memory or args.tflops or args.bandwidth):
        raise ConfigError("--memory, --tflops and --bandwidth are figures of one GPU; give --gpu once")
    if args.price is not None and not 0 <= args.price < math.inf:
        raise ConfigError(f"--price {args.price:g} must be a number, 0 or more: what a GPU costs an hour")
    if args.pairs == 0:
        raise ConfigError("--pairs 0 must be 1 or more; leave it out to count those of the data")
    from simpo.planning.engine import launched_engine, named_engine
    from simpo.planning.gpus import find_gpu

    gpus = [find_gpu(name, memory=args.memory, tflops=args.tflops, bandwidth=args.bandwidth) for name in names]
    if args.launch_config is not None:
        engine = launched_engine(launch_config(args.launch_config, "--launch-config"), args.gpus)
    else:
        engine = named_engine(args.engine, args.gpus if args.gpus is not None else 1 if args.engine == "single" else 8)
    from simpo.planning.planning import PlanOptions, run_planning
    from simpo.planning.timing import UTILISATION
    from simpo.settings import read_settings

    # no device is needed, and those of the run may be missing here
    settings = read_settings(args.configs, [*overrides, "--use_cpu=true", "--use_liger_kernel=false"])
    run_planning(
        settings,
        PlanOptions(
            gpus, engine, args.price, args.mean_tokens, args.pairs,
            UTILISATION if args.utilisation is None else args.utilisation, args.json,
        ),
    )  # fmt: skip


def _lengths(word: str) -> object:
    parts = word.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{word!r} must be three numbers; write e.g. --mean-tokens 172,331,312")
    from simpo.flops import PairLengths

    return PairLengths(*map(int, parts))
