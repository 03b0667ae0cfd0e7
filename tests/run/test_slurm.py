"""The scripts for SLURM, with stand-ins for `srun` and `scontrol` on one machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.utils.other import get_free_port

from simpo.cli.launch import LAUNCH_CONFIGS
from tests.launching import zero_file
from tests.watched import started

SLURM = Path(__file__).parents[2] / "scripts" / "slurm"
BATCH = sorted(SLURM.glob("*.sbatch"))

# Runs the words once for each of two machines, passes SIGUSR1 on to these, and ends with the highest code.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
trap 'kill -USR1 $first $second' USR1
echo "$$" > "$FAKE/srun"
highest=0
for child in $first $second; do
    while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
    (( code > highest )) && highest=$code
done
exit $highest
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) echo 127.0.0.1; echo 127.0.0.2 ;;
    *) echo "$@" >> "$FAKE/scontrol" ;;
esac
"""


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """Variables of a job on two machines with one device each."""
    fake = tmp_path / "fake"
    fake.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    return {
        "PATH": f"{fake}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FAKE": str(tmp_path),
        "LOGS": str(tmp_path / "logs"),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "GLOO_SOCKET_IFNAME": "lo",
        "MAIN_PROCESS_PORT": str(get_free_port()),
    }


@pytest.mark.parametrize("script", [*BATCH, SLURM / "nodes.sh"], ids=lambda path: path.name)
def test_the_shell_reads_it(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


@pytest.mark.parametrize("script", BATCH, ids=lambda path: path.name)
def test_a_batch_script_asks_for_what_is_needed_and_names_its_engine(script: Path, job, tmp_path: Path) -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == "1" and asked["signal"] == "USR1@600" and "requeue" in asked
    assert asked["open-mode"] == "append"  # the output of before stays when the job comes back
    inner = tmp_path / "scripts" / "slurm" / "nodes.sh"
    inner.parent.mkdir(parents=True)
    inner.write_text('printf "%s|" "$@"')
    done = subprocess.run(
        ["bash", str(script), "train", "a b.yaml", "--beta=3"], env=job, capture_output=True, text=True, check=True
    )
    engine, *words = done.stdout.split("|")
    assert engine == f"{script.stem}_nodes" and engine in LAUNCH_CONFIGS
    assert words == ["train", "a b.yaml", "--beta=3", ""]


def shown_words(job: dict[str, str], *words: str, **more: str) -> list[str]:
    """What each machine would run."""
    show = Path(job["FAKE"], "fake", "python")
    show.write_text('#!/bin/bash\nprintf "%s|" "$@"\necho\nexit ${CODE:-0}\n')
    show.chmod(0o755)
    command = ["bash", str(SLURM / "nodes.sh"), "zero3_nodes", "train", *words]
    done = subprocess.run(command, env=job | more, capture_output=True, text=True, check=False)
    return [*done.stdout.splitlines(), f"exit {done.returncode}"]


def test_what_each_machine_runs(job) -> None:
    one, code = shown_words(job, "c.yaml", "--overwrite", "--note=two words")
    (other,) = Path(job["LOGS"], "node-1.out").read_text().splitlines()
    assert code == "exit 0"
    for rank, line in enumerate((one, other)):
        words = line.split("|")[:-1]
        assert words[:6] == ["-m", "simpo.cli", "train", "c.yaml", "--overwrite", "--note=two words"]
        assert words[6:] == [
            *("--accelerate", "zero3_nodes", "--num_machines", "2", "--num_processes", "2"),
            *("--main_process_ip", "127.0.0.1", "--main_process_port", job["MAIN_PROCESS_PORT"]),
            *("--machine_rank", str(rank), "--log_dir", f"{job['LOGS']}/node-{rank}"),
        ]


def test_what_is_missing_is_named(job) -> None:
    def said(*words: str, **more: str) -> str:
        command = ["bash", str(SLURM / "nodes.sh"), "zero3_nodes", *words]
        done = subprocess.run(command, env=job | more, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        return done.stderr

    assert "sbatch scripts/slurm/zero3.sbatch train CONFIG.yaml" in said("train")
    assert "sbatch --gpus-per-node 8" in said("train", "c.yaml", SLURM_GPUS_ON_NODE="")


def test_a_job_that_comes_back_does_not_start_afresh(job) -> None:
    line, _ = shown_words(job, "c.yaml", "--overwrite", SLURM_RESTART_COUNT="1")
    assert "--overwrite" not in line and "c.yaml" in line


def test_a_job_that_would_go_back_each_time_is_refused(job) -> None:
    for word in (
        "--resume_from_checkpoint=out/checkpoint-4",
        "--resume_from_checkpoint",
        "--resume_from_checkpoint=false",
    ):
        assert shown_words(job, "c.yaml", word, "out/checkpoint-4") == ["exit 2"]
    assert shown_words(job, "c.yaml", "--resume_from_checkpoint=true")[-1] == "exit 0"


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"), [(75, 0, True), (75, 100, False), (1, 0, False), (0, 0, False)]
)
def test_only_an_interruption_goes_back_into_the_queue(job, code: int, restarts: int, requeued: bool) -> None:
    *_, last = shown_words(job, "c.yaml", CODE=str(code), SLURM_RESTART_COUNT=str(restarts))
    asked = Path(job["FAKE"], "scontrol")
    assert last == f"exit {code}" and asked.exists() == requeued
    assert not requeued or asked.read_text() == "requeue 4711\n"


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_job_is_interrupted_and_comes_back(make_config, tmp_path: Path, job) -> None:
    config, log = make_config(num_train_epochs=8), tmp_path / "out" / "log.jsonl"
    command = ["bash", str(SLURM / "nodes.sh"), str(zero_file(tmp_path, 3)), "train", str(config), "--overwrite"]
    with started(command, tmp_path / "printed", **job) as run:
        run.until_step(log, 3)
        os.kill(int((tmp_path / "srun").read_text()), signal.SIGUSR1)
        begun = time.monotonic()
        assert run.wait(200) == 75, run.printed
        assert time.monotonic() - begun < 120
        assert "stopped by SIGUSR1 after step" in run.printed and "back into the queue" in run.printed
        assert "'loss'" in run.printed and run.left() == []
    assert (tmp_path / "scontrol").read_text() == "requeue 4711\n"
    files = [path.relative_to(tmp_path / "logs").parts for path in (tmp_path / "logs").rglob("std*.log")]
    assert {parts[0] for parts in files} == {"node-0", "node-1"}
    before = len(log.read_text().splitlines())
    back = job | {"SLURM_RESTART_COUNT": "1", "MAIN_PROCESS_PORT": str(get_free_port())}
    with started(command, tmp_path / "printed", **back) as run:
        assert run.wait(400) == 0, run.printed
        assert "Going on from" in run.printed
    assert len(log.read_text().splitlines()) > before and (tmp_path / "out" / "model.safetensors").is_file()
