"""`simpo VERB`: arguments are read first; torch, transformers and the settings are imported when a verb runs."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from simpo import __version__
from simpo.errors import ConfigError, SimPOError

# What `--accelerate NAME` stands for: files in accelerate_configs/.
LAUNCH_CONFIGS = {
    "zero2": "deepspeed_zero2.yaml",
    "zero3": "deepspeed_zero3.yaml",
    "zero3_two_nodes": "deepspeed_zero3_two_nodes.yaml",
    "fsdp2": "fsdp2.yaml",
    "multi_gpu": "multi_gpu.yaml",
    "single_gpu": "single_gpu.yaml",
    "cpu": "cpu.yaml",
}

_TRAIN_HELP = """\
Train a model from one flat YAML file of settings, or several of which a later one wins.

Every setting can be overridden as --key=value, for instance:
  simpo train training_configs/llama-3-8b-instruct-simpo-v2.yaml --learning_rate=8e-7 --output_dir=outputs/try-2
"""

_SFT_HELP = """\
Supervised fine-tuning of a base model on conversations; the saved model starts a SimPO run.

Every setting can be overridden as --key=value, for instance:
  simpo sft training_configs/sft/mistral-7b-base-sft.yaml --learning_rate=1e-5 --output_dir=outputs/my-sft
"""

_INSPECT_HELP = """\
Tokenise as training would, show some pairs as tokens, and check the data. Without CONFIG give --model and --data:
  simpo inspect --model meta-llama/Meta-Llama-3-8B-Instruct --data data/pairs.jsonl --html report.html
"""

_REFERENCE_HELP = """\
Compute and keep the log-probs of the initial policy (DPO, IPO, KTO, R-DPO, or log_kl: true) on a run's data. `simpo
train` does this by itself; alone it serves to do it once for several runs:
  simpo reference training_configs/llama-3-8b-base-simpo.yaml training_configs/objectives/dpo.yaml --accelerate zero3
"""

_SWEEP_HELP = """\
Train with many values of some settings, one run at a time or one per set of devices, and say which is best:
  simpo sweep training_configs/your-own-data.yaml training_configs/sweeps/paper-staged.yaml --output_dir=outputs/sweep

The last file says what is searched. The same command goes on with a sweep that was interrupted.
"""


class Flag(NamedTuple):
    """How an option takes a value: `none`, `needed`, or `optional` (only as --flag=value; alone it means true)."""

    value: str


_TRAIN_FLAGS = {
    "--accelerate": Flag("needed"),
    "--num_processes": Flag("needed"),
    "--dry-run": Flag("none"),
    "--overwrite": Flag("none"),
    "--no-audit": Flag("none"),
    "--resume_from_checkpoint": Flag("optional"),
    "--help": Flag("none"),
}
_SFT_FLAGS = {name: flag for name, flag in _TRAIN_FLAGS.items() if name != "--no-audit"}
_INSPECT_FLAGS = {
    "--model": Flag("needed"),
    "--data": Flag("needed"),
    "--eval-prompts": Flag("needed"),
    "--html": Flag("needed"),
    "--json": Flag("needed"),
    "--pairs": Flag("needed"),
    "--rows": Flag("needed"),
    "--sample": Flag("needed"),
    "--strict": Flag("none"),
    "--help": Flag("none"),
}
_REFERENCE_FLAGS = {
    "--accelerate": Flag("needed"),
    "--num_processes": Flag("needed"),
    "--help": Flag("none"),
}
_SWEEP_FLAGS = {name: Flag("none") for name in ("--dry-run", "--retry-failed", "--no-audit", "--help")}
_FLAGS = {
    "train": _TRAIN_FLAGS,
    "sft": _SFT_FLAGS,
    "inspect": _INSPECT_FLAGS,
    "reference": _REFERENCE_FLAGS,
    "sweep": _SWEEP_FLAGS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; 0 when it succeeded, 2 after an error that the user can correct."""
    words = list(sys.argv[1:] if argv is None else argv)
    overrides: list[str] = []
    if words and words[0] in _FLAGS:
        own, overrides = split_overrides(words[1:], _FLAGS[words[0]])
        words = [words[0], *own]
    args = _parser().parse_args(words)
    run: Callable[[argparse.Namespace, list[str]], None] = args.run
    try:
        run(args, overrides)
    except SimPOError as error:
        rank = os.environ.get("RANK", "0")
        # A mistake in the settings is the same on every process: one of them says it.
        if rank == "0" or not isinstance(error, ConfigError):
            print(f"error: {error}" if rank == "0" else f"error (process {rank}): {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="simpo", description="Reference-free preference optimisation (SimPO).")
    parser.add_argument("--version", action="version", version=f"simpo {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_train(verbs)
    _add_sft(verbs)
    _add_inspect(verbs)
    _add_reference(verbs)
    _add_sweep(verbs)
    return parser


def _add_train(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    train = verbs.add_parser(
        "train",
        help="train a model from a YAML file of settings",
        description=_TRAIN_HELP,
        epilog="Settings are described in docs/configuration.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="simpo train CONFIG [CONFIG ...] [options] [--key=value ...]",
        allow_abbrev=False,
    )
    _add_run_options(train)
    train.add_argument(
        "--no-audit", action="store_true", help="skip the checks of `simpo inspect` on a sample of the data"
    )
    train.set_defaults(run=_train)


def _add_sft(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sft = verbs.add_parser(
        "sft",
        help="supervised fine-tuning of a base model, before SimPO",
        description=_SFT_HELP,
        epilog="Settings are described in docs/sft.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="simpo sft CONFIG [CONFIG ...] [options] [--key=value ...]",
        allow_abbrev=False,
    )
    _add_run_options(sft)
    sft.set_defaults(run=_sft)


def _add_run_options(train: argparse.ArgumentParser) -> None:
    """What every verb that trains takes."""
    train.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML file of settings")
    _add_launch_options(train)
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, and stop before training"
    )
    train.add_argument("--overwrite", action="store_true", help="write into an output directory that is not empty")
    train.add_argument(
        "--resume_from_checkpoint",
        metavar="PATH",
        help="continue from this checkpoint; without PATH from the last one, =false never. "
        "Left out: an interrupted run continues",
    )


def _add_launch_options(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(LAUNCH_CONFIGS)
    parser.add_argument(
        "--accelerate",
        metavar="NAME_OR_PATH",
        help=f"start through `accelerate launch` with this configuration: {names}, or the path of a file",
    )
    parser.add_argument(
        "--num_processes", type=int, metavar="N", help="with --accelerate: processes, in place of the file's number"
    )


def _add_reference(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    reference = verbs.add_parser(
        "reference",
        help="compute the log-probs of the initial policy that a run will use",
        description=_REFERENCE_HELP,
        epilog="Objectives are described in docs/objectives.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="simpo reference CONFIG [CONFIG ...] [options] [--key=value ...]",
        allow_abbrev=False,
    )
    reference.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML file of settings")
    _add_launch_options(reference)
    reference.set_defaults(run=_reference)


def _add_inspect(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    inspect = verbs.add_parser(
        "inspect",
        help="show and check the data as training would see them",
        description=_INSPECT_HELP,
        epilog="The checks, and what to do about each, are described in docs/data.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="simpo inspect [CONFIG ...] [--model NAME] [--data SOURCE] [options] [--key=value ...]",
        allow_abbrev=False,
    )
    inspect.add_argument("configs", nargs="*", metavar="CONFIG", help="YAML file of settings")
    inspect.add_argument("--model", metavar="NAME", help="model_name_or_path: a hub name or a directory")
    inspect.add_argument("--data", metavar="SOURCE", help="train on this one source, whole")
    inspect.add_argument("--html", type=Path, metavar="FILE", help="write the report as one self-contained page")
    inspect.add_argument("--json", type=Path, metavar="FILE", help="write the numbers and findings")
    inspect.add_argument("--strict", action="store_true", help="count warnings as errors")
    inspect.add_argument("--pairs", type=_count, default=3, metavar="N", help="pairs to show as tokens (default: 3)")
    inspect.add_argument(
        "--rows", type=_rows, default=(), metavar="A,B,...", help="training rows to show in place of these"
    )
    inspect.add_argument("--sample", type=_count, metavar="N", help="look at no more than N rows of each set")
    inspect.add_argument(
        "--eval-prompts",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="look for the prompts of an evaluation set in the training pairs; can be given several times",
    )
    inspect.set_defaults(run=_inspect)


def _add_sweep(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sweep = verbs.add_parser(
        "sweep",
        help="search settings: many runs, a table, and the best one",
        description=_SWEEP_HELP,
        epilog="SPACE.yaml is described in docs/sweep.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="simpo sweep CONFIG [CONFIG ...] SPACE [options] [--key=value ...]",
        allow_abbrev=False,
    )
    sweep.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML file of settings, for every trial")
    sweep.add_argument("space", metavar="SPACE", help="YAML file of what is searched, and how")
    sweep.add_argument("--dry-run", action="store_true", help="check every value, say what would be run, and stop")
    sweep.add_argument("--retry-failed", action="store_true", help="run failed trials of an earlier call again")
    sweep.add_argument("--no-audit", action="store_true", help="as for simpo train, for every trial")
    sweep.set_defaults(run=_sweep)


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} must be a whole number, 0 or more")
    return int(word)


def _rows(word: str) -> tuple[int, ...]:
    numbers = word.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{word!r} must be row numbers from 0 on; write e.g. --rows 0,12")
    return tuple(map(int, numbers))


def split_overrides(words: Sequence[str], flags: dict[str, Flag]) -> tuple[list[str], list[str]]:
    """Divide a verb's words into its own (options in one spelling, and files) and `--key=value` overrides.

    A word after a bare `--key` is its value unless it begins with `--`; a bare `--key` before another option is true.
    `-` and `_` are the same in names.
    """
    spelled = {name.replace("-", "_"): name for name in flags}
    own: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            own.append(word)
            continue
        name, equals, value = word.partition("=")
        option = spelled.get(name.replace("-", "_"))
        if option is None:
            if not equals:
                value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
            overrides.append(f"{name}={value}")
        elif equals:
            own.append(f"{option}={value}")
        elif flags[option].value == "needed" and rest:
            own.append(f"{option}={rest.pop(0)}")
        elif flags[option].value == "optional":
            # The next word is a checkpoint unless it can only be a settings file or an option.
            given = rest and not rest[0].startswith("-") and not rest[0].endswith((".yaml", ".yml"))
            own.append(f"{option}={rest.pop(0) if given else 'true'}")
        else:
            own.append(option)
    return own, overrides


def _train(args: argparse.Namespace, overrides: list[str]) -> None:
    if _launches(args):
        from simpo.settings import check_settings

        _relaunch("train", args, overrides, check_settings, _run_options(args) + ["--no-audit"] * args.no_audit)
        return
    from simpo.settings import read_settings

    settings = read_settings(args.configs, overrides)
    resume = _checkpoint(args.resume_from_checkpoint)
    if resume is None:
        resume = settings.training.resume_from_checkpoint

    from simpo.run import run_training

    run_training(
        settings,
        dry_run=args.dry_run,
        overwrite=args.overwrite,
        resume_from_checkpoint=resume,
        audit=not args.no_audit,
    )


def _sft(args: argparse.Namespace, overrides: list[str]) -> None:
    from simpo.run.sft import check_sft_settings, read_sft_settings, run_sft

    if _launches(args):
        _relaunch("sft", args, overrides, check_sft_settings, _run_options(args))
        return
    settings = read_sft_settings(args.configs, overrides)
    resume = _checkpoint(args.resume_from_checkpoint)
    if resume is None:
        resume = settings.training.resume_from_checkpoint
    run_sft(settings, dry_run=args.dry_run, overwrite=args.overwrite, resume_from_checkpoint=resume)


def _reference(args: argparse.Namespace, overrides: list[str]) -> None:
    from simpo.settings import check_settings, read_settings

    if _launches(args):
        _relaunch("reference", args, overrides, check_settings, [])
        return
    settings = read_settings(args.configs, overrides)

    from simpo.run import run_reference

    run_reference(settings)


def _launches(args: argparse.Namespace) -> bool:
    if args.num_processes is not None and args.accelerate is None:
        raise ConfigError("--num_processes needs --accelerate; write e.g. --accelerate zero3")
    return args.accelerate is not None


def _run_options(args: argparse.Namespace) -> list[str]:
    """The options of a verb that trains, as words."""
    words = ["--dry-run"] * args.dry_run + ["--overwrite"] * args.overwrite
    if args.resume_from_checkpoint is not None:
        words.append(f"--resume_from_checkpoint={args.resume_from_checkpoint}")
    return words


def _inspect(args: argparse.Namespace, overrides: list[str]) -> None:
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


def _sweep(args: argparse.Namespace, overrides: list[str]) -> None:
    from simpo.sweep import run_sweep

    run_sweep(
        args.configs,
        args.space,
        overrides,
        launch_config=launch_config,
        dry_run=args.dry_run,
        retry_failed=args.retry_failed,
        audit=not args.no_audit,
    )


def source_overrides(args: argparse.Namespace) -> list[str]:
    """What --model and --data of `simpo inspect` stand for."""
    overrides = [f"--model_name_or_path={args.model}"] if args.model else []
    if args.data:
        # what a CONFIG says about its own sources does not hold for this one
        overrides += [f"--dataset_mixer={json.dumps({args.data: 1.0})}", "--eval_dataset_mixer=null"]
        overrides += [f"--{key}=null" for key in ("dataset_name", "dataset_configs", "dataset_weights")]
    return overrides


def _checkpoint(word: str | None) -> str | bool | None:
    """A path, True for the last checkpoint, False for none, None to decide by what is in the output directory."""
    if word is None:
        return None
    return {"true": True, "false": False}.get(word.lower(), word)


def _relaunch(
    verb: str,
    args: argparse.Namespace,
    overrides: list[str],
    check: Callable[[Sequence[str], Sequence[str]], object],
    options: Sequence[str],
) -> None:
    """Become `accelerate launch ... simpo VERB ...`; returns only where the process cannot be replaced."""
    if "LOCAL_RANK" in os.environ:
        raise ConfigError(
            "--accelerate inside `accelerate launch`: leave it out, the launcher has its own --config_file"
        )
    config = launch_config(args.accelerate)

    check(args.configs, overrides)  # one error here rather than one per process
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    if args.num_processes is not None:
        command += ["--num_processes", str(args.num_processes)]
    command += ["-m", "simpo.cli", verb, *args.configs, *options]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], [*command, *overrides])


def launch_config(name: str) -> Path:
    """The accelerate configuration that a name or a path stands for.

    Raises:
        ConfigError: there is no such file; the message lists the names, or says where they were looked for.
    """
    if name not in LAUNCH_CONFIGS:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise ConfigError(
            f"--accelerate {name}: no such file or name; write a path or one of {', '.join(LAUNCH_CONFIGS)}"
        )
    # The files belong to the checkout; an installed package looks in the working directory.
    folders = [Path(__file__).resolve().parent.parent / "accelerate_configs", Path.cwd() / "accelerate_configs"]
    for folder in folders:
        if (folder / LAUNCH_CONFIGS[name]).is_file():
            return folder / LAUNCH_CONFIGS[name]
    looked = ", ".join(map(str, dict.fromkeys(folders)))
    raise ConfigError(
        f"--accelerate {name}: {LAUNCH_CONFIGS[name]} was not found in {looked}; run from a checkout, or write the "
        "path of an accelerate configuration (`accelerate config` makes one)"
    )


if __name__ == "__main__":
    sys.exit(main())
