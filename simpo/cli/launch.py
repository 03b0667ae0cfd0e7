"""`--accelerate`: a verb on several processes, through `accelerate launch`."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simpo.cli.words import Flag
from simpo.errors import ConfigError

# What `--accelerate NAME` stands for: files in accelerate_configs/.
LAUNCH_CONFIGS = {
    "zero2": "deepspeed_zero2.yaml",
    "zero3": "deepspeed_zero3.yaml",
    "zero3_nodes": "deepspeed_zero3_nodes.yaml",
    "fsdp2": "fsdp2.yaml",
    "fsdp2_nodes": "fsdp2_nodes.yaml",
    "multi_gpu": "multi_gpu.yaml",
    "single_gpu": "single_gpu.yaml",
    "cpu": "cpu.yaml",
}

LAUNCH_FLAGS = {"--accelerate": Flag("needed"), "--num_processes": Flag("needed")}
# Further options of the launcher, by its own names: they replace numbers of the file.
_NODES = ("num_machines", "machine_rank", "main_process_ip", "main_process_port")
NODE_FLAGS = {f"--{name}": Flag("needed") for name in (*_NODES, "log_dir")}


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


def add_node_options(parser: argparse.ArgumentParser) -> None:
    """The options of `NODE_FLAGS`."""
    first = "with --accelerate, on several machines"
    parser.add_argument("--num_machines", type=int, metavar="N", help=f"{first}: how many")
    parser.add_argument("--machine_rank", type=int, metavar="N", help=f"{first}: which one this is, from 0")
    parser.add_argument("--main_process_ip", metavar="ADDRESS", help=f"{first}: address of the first one")
    parser.add_argument("--main_process_port", type=int, metavar="PORT", help=f"{first}: port of the first one")
    parser.add_argument(
        "--log_dir",
        metavar="FOLDER",
        help="with --accelerate: files for the output of every process; the terminal shows the first one's",
    )


def launches(args: argparse.Namespace) -> bool:
    """Whether the command line asks for a launcher."""
    for name in ("num_processes", *_NODES, "log_dir"):
        if getattr(args, name, None) is not None and args.accelerate is None:
            raise ConfigError(f"--{name} needs --accelerate; write e.g. --accelerate zero3")
    return args.accelerate is not None


def relaunch(
    verb: str,
    args: argparse.Namespace,
    overrides: list[str],
    check: Callable[[Sequence[str], Sequence[str]], object],
    options: Sequence[str],
) -> None:
    """Become `accelerate launch ... simpo VERB ...`; returns only where the process cannot be replaced."""
    command = launch_command(verb, args)
    check(args.configs, overrides)  # one error here rather than one per process
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], [*command, *options, *overrides])


def launch_run(
    verb: str,
    args: argparse.Namespace,
    overrides: list[str],
    check: Callable[[Sequence[str], Sequence[str]], Mapping[str, Any]],
    options: Sequence[str],
) -> None:
    """Start `accelerate launch ... simpo VERB ...` for a run, pass signals on to it, and end as it ends.

    Raises:
        Interrupted: a signal ended the run in order.
        SystemExit: with the launcher's code.
    """
    from simpo.cli.supervise import supervise

    command = launch_command(verb, args)
    folder = check(args.configs, overrides).get("output_dir") or "trainer_output"  # as transformers names it ...
    folder = os.path.expanduser(folder)  # ... and finds it
    environment = dict(os.environ)
    # torchrun passes these signals on, and waits so many seconds for its processes; what is set already stays
    environment.setdefault("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    if args.log_dir is not None:
        environment.setdefault("PET_LOCAL_RANKS_FILTER", "0")
    supervise([*command, *options, *overrides], environment, folder)


def launch_command(verb: str, args: argparse.Namespace) -> list[str]:
    """The words of `accelerate launch ... simpo VERB CONFIG ...`, without the verb's own options.

    Raises:
        ConfigError: a launcher runs already, or its file is not there.
    """
    if "LOCAL_RANK" in os.environ:
        raise ConfigError(
            "--accelerate inside `accelerate launch`: leave it out, the launcher has its own --config_file"
        )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch_config(args.accelerate))]
    for name in ("num_processes", *_NODES):
        if (value := getattr(args, name, None)) is not None:
            command += [f"--{name}", str(value)]
    if getattr(args, "log_dir", None) is not None:
        command += ["--log_dir", args.log_dir, "--tee", "3"]
    return [*command, "-m", "simpo.cli", verb, *args.configs]


def launch_config(name: str, option: str = "--accelerate") -> Path:
    """The accelerate configuration that a name or a path stands for; `option` is what messages call it.

    Raises:
        ConfigError: there is no such file; the message lists the names, or says where they were looked for.
    """
    if name not in LAUNCH_CONFIGS:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise ConfigError(f"{option} {name}: no such file or name; write a path or one of {', '.join(LAUNCH_CONFIGS)}")
    # The files belong to the checkout; an installed package looks in the working directory.
    folders = [Path(__file__).resolve().parents[2] / "accelerate_configs", Path.cwd() / "accelerate_configs"]
    for folder in folders:
        if (folder / LAUNCH_CONFIGS[name]).is_file():
            return folder / LAUNCH_CONFIGS[name]
    looked = ", ".join(map(str, dict.fromkeys(folders)))
    raise ConfigError(
        f"{option} {name}: {LAUNCH_CONFIGS[name]} was not found in {looked}; run from a checkout, or write the "
        "path of an accelerate configuration (`accelerate config` makes one)"
    )
