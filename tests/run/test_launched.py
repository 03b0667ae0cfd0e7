"""`simpo train --accelerate` with real processes: signals reach them, and the code says to start again."""

import json
import signal
import sys
from pathlib import Path

import pytest

from tests.launching import zero_file
from tests.watched import TRAIN, started


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_the_command(make_config, tmp_path: Path, number: signal.Signals, code: int) -> None:
    config = make_config(num_train_epochs=60)
    launcher = ["--accelerate", str(zero_file(tmp_path, 2)), "--main_process_port", "0", "--log_dir"]
    command = [sys.executable, *TRAIN, str(config), *launcher, str(tmp_path / "logs")]
    with started(command, tmp_path / "printed") as run:
        run.until_step(tmp_path / "out" / "log.jsonl", 3)
        run.process.send_signal(number)
        assert run.wait(200) == code, run.printed
        assert run.left() == []
        # the terminal shows the first process only, the files both
        assert run.printed.count("Plan\n") == 1
    files = {path.parts[-2] for path in (tmp_path / "logs").rglob("stdout.log")}
    assert files == {"0", "1"}
    status = json.loads((tmp_path / "out" / "run_manifest.json").read_text())["status"]
    assert status == ("interrupted" if code == 75 else "running")
    assert bool(list((tmp_path / "out").glob("checkpoint-*/run_identity.json"))) == (code == 75)
