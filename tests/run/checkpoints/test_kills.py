"""Runs of two processes that are killed at random moments and started again end as if nobody had.

The long form: `python -m benchmarks.soak.kills --kills 50`. See docs/reliability.md.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.launching import run


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize(("engine", "seed"), [("ddp", 1), ("zero3", 1)])
def test_killed_runs_end_as_unkilled_ones(tmp_path: Path, engine: str, seed: int) -> None:
    words = ["--engine", engine, "--kills", "3", "--seed", str(seed), "--output", str(tmp_path)]
    printed = run([sys.executable, "-m", "benchmarks.soak.kills", *words])
    kills = json.loads((tmp_path / f"kills-{engine}.json").read_text())["kills"]
    assert len(kills) == 3 and "is the same as without a kill, after 3 of 3" in printed
    assert len({kill["phase"] for kill in kills}) >= 2
