"""`simpo VERB`: arguments are read first; torch, transformers and the settings are imported when a verb runs."""

import argparse
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


class Flag(NamedTuple):
    """How an option takes a value: `none`, `needed`, or `optional` (only as --flag=value; alone it means true)."""

    value: str


_TRAIN_FLAGS = {
    "--accelerate": Flag("needed"),
    "--num_processes": Flag("needed"),
    "--dry-run": Flag("none"),
    "--overwrite": Flag("none"),
    "--resume_from_checkpoint": Flag("optional"),
    "--help": Flag("none"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; 0 when it succeeded, 2 after an error that the user can correct."""
    words = list(sys.argv[1:] if argv is None else argv)
    overrides: list[str] = []
    if words and words[0] == "train":
        own, overrides = split_overrides(words[1:], _TRAIN_FLAGS)
        words = ["train", *own]
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
    train = verbs.add_parser(
        "train",
        help="train a model from a YAML file of settings",
        description=_TRAIN_HELP,
        epilog="Settings are described in docs/configuration.md.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="simpo train CONFIG [CONFIG ...] [options] [--key=value ...]",
        allow_abbrev=False,
    )
    train.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML file of settings")
    names = ", ".join(LAUNCH_CONFIGS)
    train.add_argument(
        "--accelerate",
        metavar="NAME_OR_PATH",
        help=f"start through `accelerate launch` with this configuration: {names}, or the path of a file",
    )
    train.add_argument(
        "--num_processes", type=int, metavar="N", help="with --accelerate: processes, in place of the file's number"
    )
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
    train.set_defaults(run=_train)
    return parser


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
    if args.num_processes is not None and args.accelerate is None:
        raise ConfigError("--num_processes needs --accelerate; write e.g. --accelerate zero3")
    if args.accelerate is not None:
        _relaunch(args, overrides)
        return
    from simpo.settings import read_settings

    settings = read_settings(args.configs, overrides)
    resume = _checkpoint(args.resume_from_checkpoint)
    if resume is None:
        resume = settings.training.resume_from_checkpoint

    from simpo.run import run_training

    run_training(settings, dry_run=args.dry_run, overwrite=args.overwrite, resume_from_checkpoint=resume)


def _checkpoint(word: str | None) -> str | bool | None:
    """A path, True for the last checkpoint, False for none, None to decide by what is in the output directory."""
    if word is None:
        return None
    return {"true": True, "false": False}.get(word.lower(), word)


def _relaunch(args: argparse.Namespace, overrides: list[str]) -> None:
    """Become `accelerate launch ... simpo train ...`; returns only where the process cannot be replaced."""
    if "LOCAL_RANK" in os.environ:
        raise ConfigError(
            "--accelerate inside `accelerate launch`: leave it out, the launcher has its own --config_file"
        )
    config = launch_config(args.accelerate)

    from simpo.settings import check_settings

    check_settings(args.configs, overrides)  # one error here rather than one per process
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    if args.num_processes is not None:
        command += ["--num_processes", str(args.num_processes)]
    command += ["-m", "simpo.cli", "train", *args.configs]
    command += ["--dry-run"] * args.dry_run + ["--overwrite"] * args.overwrite
    if args.resume_from_checkpoint is not None:
        command.append(f"--resume_from_checkpoint={args.resume_from_checkpoint}")
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
