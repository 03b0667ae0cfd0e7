"""Small runs of two processes that are forked from this one, which has imported everything.

A start costs no imports, so that most kills fall into the work and not into Python's start. `start` stands in for
torchrun: a launcher that starts the ranks and, when one of them fails, stops the others.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import mmap
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from benchmarks.report import ROOT

GRACE = 20.0
"""Seconds that ranks have to end in order once another one failed."""

PHASES = (
    "starting", "loading data", "tokenising", "loading model", "reference", "training", "saving", "exporting",
    "evaluating", "ending",
)  # fmt: skip

# Where a phase begins and ends. Code outside of these belongs to the one around it.
_MARKS = (
    ("simpo.run.train:_read_inputs", "loading data"),
    ("simpo.trainer:tokenized_sets", "tokenising"),
    ("simpo.trainer:build_policy", "loading model"),
    ("simpo.run.attempt:train_safely", "training"),
    ("simpo.trainer:PreferenceTrainer.compute_references", "reference"),
    ("transformers:Trainer._save_checkpoint", "saving"),
    ("simpo.run.checkpoints.callback:CheckpointCallback.on_save", "saving"),
    ("simpo.run.attempt:export_model", "exporting"),
    ("simpo.trainer:PreferenceTrainer.evaluate", "evaluating"),
    ("simpo.run.train:model_card", "ending"),
)

_ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
}
ENGINES: dict[str, dict[str, str]] = {"ddp": {}, "zero3": _ZERO3}
"""What `accelerate launch` puts into the environment of a rank."""


def warm(folder: Path) -> None:
    """Import what a run needs, with caches of its own, and mark where its phases begin; before the first start."""
    os.environ |= {
        "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TORCH_EXTENSIONS_DIR": str(folder / "extensions"),
        "TMPDIR": str(folder / "tmp"),
    }  # fmt: skip
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = None  # it is read anew
    built = Path("~/.cache/torch_extensions").expanduser()
    if not list(built.rglob("lock")):
        for library in built.glob(f"py{sys.version_info.major}{sys.version_info.minor}_cpu/*/"):
            shutil.copytree(library, folder / "extensions" / library.name, dirs_exist_ok=True)  # a minute's build
    for mark, phase in _MARKS:
        _mark(mark, phase)
    from tqdm import tqdm

    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())  # its own is shared by all forks: one that is killed in it would stop the others


_board = mmap.mmap(-1, 1)  # the phase of rank 0, which its parent reads


def phase() -> str:
    """Where the run that was started last is."""
    return PHASES[_board[0]]


def _mark(place: str, name: str) -> None:
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    wrapped = getattr(owner, last)

    def marked(*args: Any, **kwargs: Any) -> Any:
        if os.environ.get("RANK", "0") != "0":
            return wrapped(*args, **kwargs)
        before = _board[0]
        _board[0] = PHASES.index(name)
        try:
            return wrapped(*args, **kwargs)
        finally:
            _board[0] = before

    setattr(owner, last, marked)


def make_config(folder: Path, name: str, **settings: Any) -> Path:
    """The YAML of a run of the tests' tiny model on 48 pairs, which writes into `folder / name`: 12 steps, 6 saves."""
    folder.mkdir(parents=True, exist_ok=True)
    golden = ROOT / "tests" / "golden"
    rows = json.loads((golden / "paper_reference.json").read_text())["rows"]
    for part, copies in (("train", 6), ("test", 2)):
        if not (file := folder / f"{part}.jsonl").exists():  # a new file, even of the same rows, would be cached anew
            lines = [json.dumps(row).replace("?", f" ({number})?") for number in range(copies) for row in rows]
            file.write_text("".join(f"{line}\n" for line in lines))
    config = {
        "model_name_or_path": str(golden / "tiny"),
        "dataset_mixer": {str(folder / "train.jsonl"): 1.0},
        "eval_dataset_mixer": {str(folder / "test.jsonl"): 1.0},
        "output_dir": str(folder / name),
        "total_train_batch_size": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "max_steps": 12,
        "max_length": 512,
        "max_prompt_length": 400,
        "log_kl": True,  # needs log-probs of the initial policy
        "reference_cache": str(folder / "references"),
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config | settings))
    return path


@dataclass
class Processes:
    """A started run.

    Args:
        launcher: its pid.
        printed: what it prints, all ranks together.
        port: where its ranks meet.
    """

    launcher: int
    printed: Path
    port: int
    code: int | None = None

    def ranks(self) -> list[int]:
        """Pids of the ranks that live."""
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.launcher).children()]
        return []

    def poll(self) -> int | None:
        """The exit status of the launcher; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.launcher, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, seconds: float) -> int:
        """Wait for the end.

        Raises:
            TimeoutError: with what was printed last.
        """
        limit = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > limit:
                raise TimeoutError(f"still running after {seconds:.0f} s, in {phase()}:\n{self.last_lines()}")
            time.sleep(0.01)
        assert self.code is not None
        return self.code

    def last_lines(self, count: int = 25) -> str:
        """What was printed last."""
        return "\n".join(self.printed.read_text(errors="replace").splitlines()[-count:])

    def kill(self, who: str) -> list[int]:
        """SIGKILL to `all` processes at once, to the `launcher` alone or to `one rank`; returns the ranks of before."""
        os.kill(self.launcher, signal.SIGSTOP)  # it must not start another rank after this look
        _, status = os.waitpid(self.launcher, os.WUNTRACED)
        if not os.WIFSTOPPED(status):  # it had just ended
            self.code = os.waitstatus_to_exitcode(status)
            return []
        ranks = self.ranks()
        victims = {"all": [self.launcher, *ranks], "launcher": [self.launcher], "one rank": ranks[-1:]}[who]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if who == "one rank":
            os.kill(self.launcher, signal.SIGCONT)
        return ranks

    def signal(self, number: int) -> None:
        """Send a signal to all ranks, as a scheduler does."""
        for pid in self.ranks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def start(config: Path, engine: str, printed: Path, processes: int = 2) -> Processes:
    """Start `simpo train CONFIG` on several processes."""
    _board[0] = 0
    port = _free_port()
    printed.touch()
    environment = ENGINES[engine] | {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "forked",
    }  # fmt: skip
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _launch(["train", str(config)], environment, printed, processes)
    return Processes(pid, printed, port)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _launch(words: list[str], environment: Mapping[str, str], printed: Path, processes: int) -> NoReturn:
    """As torchrun does: start the ranks; the first that fails ends the others."""
    os.setsid()
    redirect(printed)
    running = set()
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.environ |= {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            end_with(lambda: _rank(words))
        running.add(pid)
    code, limit = 0, float("inf")
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            running.discard(pid)
            failed = os.waitstatus_to_exitcode(status)
            if failed and not code:
                code, limit = failed, time.monotonic() + GRACE
                _send(running, signal.SIGTERM)
        if time.monotonic() > limit:
            _send(running, signal.SIGKILL)
            limit = float("inf")
        time.sleep(0.02)
    os._exit(code if code >= 0 else 128 - code)


def redirect(printed: Path) -> None:
    """Let this process print into a file."""
    output = os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _send(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _rank(words: list[str]) -> int:
    from simpo import cli

    sys.argv = ["simpo", *words]  # what the manifest says
    return cli.main(words)


def end_with(work: Callable[[], int]) -> NoReturn:
    """End this fork with the code of `work`; nothing of the parent's stack runs in it."""
    code = 1
    try:
        code = work()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def cleared(folder: Path, keep: bool) -> Iterator[Path]:
    """A folder that is removed at the end, unless it is to be kept."""
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
