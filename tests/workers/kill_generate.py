"""Run `simpo generate ARGS` again and again, killed at random moments, then to its end.

python kill_generate.py KILLS SEED CONFIG: each run is a fork of this process, which has imported everything already.
"""

import os
import random
import signal
import sys
import time

import torch  # noqa: F401
import transformers

from simpo import cli
from simpo.onpolicy import generate  # noqa: F401

transformers.AutoModelForCausalLM  # noqa: B018  # imported when it is first looked at


def start(config: str) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(cli.main(["generate", config]))
    return pid


def main(kills: int, seed: int, config: str) -> None:
    rng = random.Random(seed)
    begun = time.monotonic()
    os.waitpid(start(f"{config}.whole"), 0)
    whole = time.monotonic() - begun  # seconds of a run that nobody kills
    finished = 0
    for _ in range(kills):
        pid = start(config)
        time.sleep(rng.uniform(0, whole))
        finished += os.waitpid(pid, os.WNOHANG)[0] == pid
        if finished:
            break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    status = os.waitpid(start(config), 0)[1]
    print(f"status {status}, killed {kills if not finished else 'fewer'}, {whole:.2f} s")
    sys.exit(os.waitstatus_to_exitcode(status))


main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
