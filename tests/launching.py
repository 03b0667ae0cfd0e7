"""Start worker scripts under the engines that run on a CPU: plain, DDP, ZeRO-2, ZeRO-3."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

WORKERS = Path(__file__).parent / "workers"
Calls = list[dict[str, Any]]
"""What `run_training` was called with, in place of training."""


def environment() -> dict[str, str]:
    """One thread for each process, no network, no GPU."""
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(WORKERS.parents[1]), os.environ.get("PYTHONPATH", "")])),
    }


def let_forks_be_killed() -> None:
    """Before forks that are killed: progress bars share no lock.

    That of tqdm is a semaphore which all forks share, and a child that is killed inside it holds it for ever.
    """
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())


def run(command: list[str], **kwargs: object) -> str:
    """Run to the end and return what was printed; a failure shows its last lines."""
    done = subprocess.run(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    lines = done.stdout.splitlines()
    causes = [line for line in lines if "what()" in line or "Error:" in line]
    assert done.returncode == 0, "\n".join([*causes[:10], *lines[-40:]])
    return done.stdout


def torchrun(script: Path, *arguments: str, processes: int = 2) -> str:
    """Start with torchrun, gloo between the processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return run([*launcher, str(script), *arguments])


def zero_file(folder: Path, stage: int, **settings: object) -> Path:
    """An accelerate configuration for ZeRO on 2 CPU processes."""
    path = folder / f"zero{stage}.yaml"
    engine = {
        "zero_stage": stage,
        "gradient_accumulation_steps": 1,
        "zero3_init_flag": False,
        "zero3_save_16bit_model": True,
        "deepspeed_multinode_launcher": "standard",
    }
    launcher = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": engine,
        "use_cpu": True,
        "num_processes": 2,
        "num_machines": 1,
        "machine_rank": 0,
        "mixed_precision": "no",
    }
    path.write_text(yaml.safe_dump(launcher | settings))
    return path


def deepspeed(stage: int, folder: Path, script: Path, *arguments: str) -> str:
    """Start with `accelerate launch` and ZeRO on 2 CPU processes."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(zero_file(folder, stage))]
    return run([*launcher, "--main_process_port", "0", str(script), *arguments])
