"""Rows stay on disk: what loading and tokenising take in memory hardly grows with the number of pairs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("deduplicate, pairs, allowed", [("exact", 100_000, 500), ("near", 30_000, 500)])
def test_memory_hardly_grows(tmp_path, deduplicate, pairs, allowed):
    command = [
        sys.executable,
        "-m",
        "tests.workers.data_memory",
        str(pairs),
        str(tmp_path),
        "--deduplicate",
        deduplicate,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["total"] == pairs and sum(found["dropped"].values()) > pairs // 50
    grown = found["peaks"]["all"]["own"] - found["before"]["own"]
    assert grown < allowed, found  # MiB, over three processes
