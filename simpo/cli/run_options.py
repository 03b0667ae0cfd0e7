"""What `simpo train` and `simpo sft` take alike: files of settings, launching, resuming."""

import argparse

from simpo.cli.launch import LAUNCH_FLAGS, NODE_FLAGS, add_launch_options, add_node_options
from simpo.cli.words import Flag

RUN_FLAGS = (
    LAUNCH_FLAGS
    | NODE_FLAGS
    | {
        "--dry-run": Flag("none"),
        "--overwrite": Flag("none"),
        "--resume_from_checkpoint": Flag("optional"),
    }
)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options of `RUN_FLAGS`, and CONFIG."""
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML file of settings")
    add_launch_options(parser)
    add_node_options(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, and stop before training"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into an output directory that is not empty")
    parser.add_argument(
        "--resume_from_checkpoint",
        metavar="PATH",
        help="continue from this checkpoint; without PATH from the last one, =false never. "
        "Left out: an interrupted run continues",
    )


def run_words(args: argparse.Namespace) -> list[str]:
    """The same options as words, for the processes that a launcher starts; its own are left out."""
    words = ["--dry-run"] * args.dry_run + ["--overwrite"] * args.overwrite
    if args.resume_from_checkpoint is not None:
        words.append(f"--resume_from_checkpoint={args.resume_from_checkpoint}")
    return words


def resume_from(word: str | None) -> str | bool | None:
    """A path, True for the last checkpoint, False for none, None to decide by what is in the output directory."""
    if word is None:
        return None
    return {"true": True, "false": False}.get(word.lower(), word)
