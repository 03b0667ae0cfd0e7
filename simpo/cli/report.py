"""`simpo report RUN [RUN ...]`: one page about a run, or about several side by side."""

import argparse
from pathlib import Path

from simpo.cli.words import Flag, Verbs, add_verb
from simpo.errors import ConfigError

HELP = """\
Write report.html of a run, finished or not: settings, data, curves, evaluation, warnings, samples. `simpo train` ends
with it. Several runs are laid side by side:
  simpo report outputs/llama-3-8b-simpo
  simpo report outputs/beta-2.5 outputs/beta-10 --output outputs/betas.html
"""

FLAGS = {"--output": Flag("needed")}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "report",
        run,
        summary="one page about a run, or about several side by side",
        description=HELP,
        epilog="What the page shows is described in docs/analysis.md.",
        usage="simpo report RUN [RUN ...] [--output FILE]",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page; left out: report.html in the run's folder, of several runs in the current one",
    )


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Read, draw and write."""
    if overrides:
        raise ConfigError(f"simpo report has no setting {overrides[0].partition('=')[0]}; see simpo report --help")

    from simpo.analysis.report.run_report import write_report

    print(f"written: {write_report(args.runs, args.output)}")
