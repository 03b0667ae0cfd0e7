"""`simpo compare RESULTS...`: results of models beside the published ones."""

import argparse
from pathlib import Path

from simpo.cli.words import Flag, Verbs, add_verb
from simpo.errors import ConfigError

HELP = """\
One table over models and benchmarks, beside the published numbers. A folder is searched for results.json:
  simpo compare outputs/eval --setting "Llama3 Instruct 8B" --out outputs/table
"""

FLAGS = {
    "--out": Flag("needed"),
    "--setting": Flag("needed"),
    "--published": Flag("needed"),
}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "compare",
        run,
        summary="one table over models and benchmarks, beside the published numbers",
        description=HELP,
        epilog="What the numbers are is described in docs/evaluation.md.",
        usage="simpo compare RESULTS [RESULTS ...] [options]",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="results.json, or a folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write compare.md, compare.csv and compare.png there")
    parser.add_argument("--setting", metavar="NAME", help="show the published rows of this setting, all of them")
    parser.add_argument(
        "--published",
        choices=("brief", "all", "none"),
        default="brief",
        help="without --setting: initial models and SimPO of all settings (the default), all rows, or none",
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Read, compare, show and write."""
    if overrides:
        raise ConfigError(f"simpo compare has no setting {overrides[0].partition('=')[0]}; see simpo compare --help")

    from simpo.evals.tables.compare import compare, find_results
    from simpo.evals.tables.published import choose_published

    comparison = compare(find_results(args.results), choose_published(args.setting, args.published))

    written = []
    if args.out is not None:  # first: the table may go into a pipe that is closed early
        from simpo.evals.tables.report import write_comparison

        written = write_comparison(comparison, args.out)

    from rich.console import Console

    from simpo.evals.tables.terminal import print_comparison

    print_comparison(comparison, Console(highlight=False, markup=False, emoji=False))
    for path in written:
        print(f"written: {path}")
