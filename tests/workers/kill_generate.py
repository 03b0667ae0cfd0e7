"""Run `simpo generate CONFIG` again and again, killed at random moments, then to its end.

python kill_generate.py KILLS SEED CONFIG FOLDER WHOLE: FOLDER is where CONFIG writes; WHOLE is the same configuration
with another folder, for a run that nobody kills. The killed runs are forks of this process, which has imported all.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not outlive a fork

from simpo import cli
from tests.launching import let_forks_be_killed


def finished(folder: Path) -> int:
    """Records that stand there."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("records-*.jsonl"))


def start(config: str) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(cli.main(["generate", config]))
    return pid


def main(kills: int, seed: int, config: str, folder: Path, whole: str) -> int:
    let_forks_be_killed()
    assert cli.main(["generate", whole]) == 0
    rng = random.Random(seed)
    total = finished(Path(whole).parent / "whole")
    for target in sorted(rng.choices(range(total - 4), k=kills)):
        pid = start(config)
        while finished(folder) < target and not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(f"killed at {finished(folder)} of {total}", flush=True)
    return os.waitstatus_to_exitcode(os.waitpid(start(config), 0)[1])


sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), sys.argv[5]))
