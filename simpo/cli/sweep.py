"""`simpo sweep CONFIG SPACE`: many runs, and which settings are best."""

import argparse

from simpo.cli.launch import launch_config
from simpo.cli.words import Flag, Verbs, add_verb

HELP = """\
Train with many values of some settings, one run at a time or one per set of devices, and say which is best:
  simpo sweep training_configs/your-own-data.yaml training_configs/sweeps/paper-staged.yaml --output_dir=outputs/sweep

The last file says what is searched. The same command goes on with a sweep that was interrupted.
"""

FLAGS = {name: Flag("none") for name in ("--dry-run", "--retry-failed", "--no-audit", "--strict")}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "sweep",
        run,
        summary="search settings: many runs, a table, and the best one",
        description=HELP,
        epilog="SPACE.yaml is described in docs/sweep.md.",
        usage="simpo sweep CONFIG [CONFIG ...] SPACE [options] [--key=value ...]",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML file of settings, for every trial")
    parser.add_argument("space", metavar="SPACE", help="YAML file of what is searched, and how")
    parser.add_argument("--dry-run", action="store_true", help="check every value, say what would be run, and stop")
    parser.add_argument("--retry-failed", action="store_true", help="run failed trials of an earlier call again")
    parser.add_argument("--no-audit", action="store_true", help="as for simpo train, for every trial")
    parser.add_argument("--strict", action="store_true", help="as for simpo train: a trial with warnings fails")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Run the trials that are still to be run."""
    from simpo.sweep import run_sweep

    run_sweep(
        args.configs,
        args.space,
        overrides,
        launch_config=launch_config,
        dry_run=args.dry_run,
        retry_failed=args.retry_failed,
        audit=not args.no_audit,
        strict=args.strict,
    )
