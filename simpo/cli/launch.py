"""`--accelerate`: a verb on several processes, through `accelerate launch`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from simpo.cli.words import Flag
from simpo.errors import ConfigError

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

LAUNCH_FLAGS = {"--accelerate": Flag("needed"), "--num_processes": Flag("needed")}


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """The options of `LAUNCH_FLAGS`."""
    names = ", ".join(LAUNCH_CONFIGS)
    parser.add_argument(
        "--accelerate",
        metavar="NAME_OR_PATH",
        help=f"start through `accelerate launch` with this configuration: {names}, or the path of a file",
    )
    parser.add_argument(
        "--num_processes", type=int, metavar="N", help="with --accelerate: processes, in place of the file's number"
    )


def launches(args: argparse.Namespace) -> bool:
    """Whether the command line asks for a launcher."""
    if args.num_processes is not None and args.accelerate is None:
        raise ConfigError("--num_processes needs --accelerate; write e.g. --accelerate zero3")
    return args.accelerate is not None


def relaunch(
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
    folders = [Path(__file__).resolve().parents[2] / "accelerate_configs", Path.cwd() / "accelerate_configs"]
    for folder in folders:
        if (folder / LAUNCH_CONFIGS[name]).is_file():
            return folder / LAUNCH_CONFIGS[name]
    looked = ", ".join(map(str, dict.fromkeys(folders)))
    raise ConfigError(
        f"--accelerate {name}: {LAUNCH_CONFIGS[name]} was not found in {looked}; run from a checkout, or write the "
        "path of an accelerate configuration (`accelerate config` makes one)"
    )
