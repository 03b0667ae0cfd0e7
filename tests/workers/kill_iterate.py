"""Run `simpo iterate CONFIG` to its end, then again in another folder, killed at random moments, then to its end.

python kill_iterate.py KILLS SEED CONFIG WHOLE KILLED: WHOLE and KILLED are the folders. Steps are forks of this
process, which has imported all; a kill takes the driver and the step that it runs, as SIGKILL to their process group.
"""

import os
import random
import signal
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not outlive a fork

import simpo.onpolicy.annotate
import simpo.run.train  # noqa: F401
from simpo import cli
from simpo.cli.launch import launch_config
from simpo.onpolicy.iterate import run_iterate
from tests.launching import let_forks_be_killed


def fork(command: list[str]) -> int:
    """Run the verb of a command in a fork."""
    pid = os.fork()
    if pid == 0:
        os._exit(cli.main(command[3:]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start(config: str, folder: str) -> int:
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        run_iterate([config], [f"--output_dir={folder}"], 2, launch_config=launch_config, run=fork)
        os._exit(0)
    return pid


def main(kills: int, seed: int, config: str, whole: str, killed: str) -> int:
    let_forks_be_killed()
    began = time.monotonic()
    code = os.waitpid(start(config, whole), 0)[1]
    assert code == 0
    took = time.monotonic() - began
    rng = random.Random(seed)
    for _ in range(kills):
        pid = start(config, killed)
        time.sleep(rng.uniform(0.02, 2.2 / kills) * took)
        if os.waitpid(pid, os.WNOHANG)[0]:
            print("too late to kill", flush=True)
            return 0
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print("killed", flush=True)
    return os.waitstatus_to_exitcode(os.waitpid(start(config, killed), 0)[1])


sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]))
