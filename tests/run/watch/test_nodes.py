"""Two machines: network, host name and process numbers of their own where that may be made, else two addresses."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from accelerate.utils.other import get_free_port

from simpo.run.folder import SIGNS
from tests.launching import zero_file
from tests.watched import TRAIN, close_weights, launcher, started

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


class Nodes(NamedTuple):
    """How a command is started on each, what they are called, and the first one's address."""

    prefixes: tuple[list[str], list[str]]
    apart: bool
    interface: str
    address: str


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    names = [f"simpo{os.getpid()}{letter}" for letter in "ab"]
    try:
        made = (
            all(ip("netns", "add", name) for name in names)
            and ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
            and all(
                ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
                and ip("-n", name, "link", "set", "eth0", "up")
                and ip("-n", name, "link", "set", "lo", "up")
                for number, name in enumerate(names, start=1)
            )
        )
        own = ["unshare", "--uts", "--pid", "--mount-proc", "--kill-child", "sh", "-c", 'hostname "$0"; exec "$@"']
        prefixes = tuple(["ip", "netns", "exec", name, *own, f"node-{name[-1]}"] for name in names)
        if made and subprocess.run([*prefixes[0], "true"], capture_output=True, check=False).returncode == 0:
            yield Nodes(prefixes, True, "eth0", "10.77.0.1")
        else:
            yield Nodes(([], []), False, "lo", "127.0.0.1")
    except FileNotFoundError:  # neither ip nor unshare
        yield Nodes(([], []), False, "lo", "127.0.0.1")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def commands(nodes: Nodes, folder: Path, config: Path, *options: str) -> list[list[str]]:
    """ZeRO-3, one process on each."""
    port = str(get_free_port())
    own = ["--num_machines", "2", "--main_process_ip", nodes.address, "--main_process_port", port]
    words = [sys.executable, *TRAIN, str(config), "--accelerate", str(zero_file(folder, 3)), *own, *options]
    return [[*prefix, *words, "--machine_rank", str(rank)] for rank, prefix in enumerate(nodes.prefixes)]


def variables(nodes: Nodes) -> dict[str, str]:
    return {"GLOO_SOCKET_IFNAME": nodes.interface}


def test_two_machines_train_as_one_does(make_config, tmp_path, nodes: Nodes) -> None:
    config = make_config(num_train_epochs=2)
    out, one = tmp_path / "out", tmp_path / "one"
    with ExitStack() as stack:
        runs = [
            stack.enter_context(started(command, tmp_path / f"printed-{rank}", **variables(nodes)))
            for rank, command in enumerate(commands(nodes, tmp_path, config))
        ]
        assert [run.wait(400) for run in runs] == [0, 0], runs[0].printed + runs[1].printed
        assert "ZeRO-3 on 2 processes" in runs[0].printed and "Plan" not in runs[1].printed
    assert not (out / SIGNS).exists()
    command = [*launcher("zero3", tmp_path), *TRAIN, str(config), f"--output_dir={one}"]
    with started(command, tmp_path / "printed") as run:
        assert run.wait(400) == 0, run.printed
    close_weights(out, one, 1e-6)


def test_a_folder_that_is_not_shared_is_found_at_the_start(make_config, tmp_path, nodes: Nodes) -> None:
    config = make_config(hang_timeout=20)
    with ExitStack() as stack:
        runs = []
        for rank, command in enumerate(commands(nodes, tmp_path, config)):
            words = [*command, f"--output_dir={tmp_path / f'disk-{rank}' / 'out'}"]
            runs.append(stack.enter_context(started(words, tmp_path / f"printed-{rank}", **variables(nodes))))
        assert all(run.wait(400) for run in runs)
        assert "is not the same folder on all machines" in runs[0].printed
        assert "is not seen by process 1" in runs[0].printed
        assert not nodes.apart or "is not seen by process 1 on node-b; name a folder" in runs[0].printed
    assert not (tmp_path / "disk-0").exists() and not (tmp_path / "disk-1").exists()


def test_a_machine_that_is_lost_is_named(make_config, tmp_path, nodes: Nodes) -> None:
    config = make_config(num_train_epochs=40, save_strategy="steps", save_steps=3, hang_timeout=20)
    with ExitStack() as stack:
        first, second = [
            stack.enter_context(started(command, tmp_path / f"printed-{rank}", **variables(nodes)))
            for rank, command in enumerate(commands(nodes, tmp_path, config))
        ]
        first.until_step(tmp_path / "out" / "log.jsonl", 5)
        second.note()
        second.process.kill()  # with all that runs there
        for one in second.seen.values():
            if one.is_running():
                one.kill()
        assert first.wait(90) not in (0, 75)
        assert "error (process 0 on " in first.printed and "process 1 on " in first.printed, first.printed
        assert not nodes.apart or "process 1 on node-b (pid " in first.printed
        assert not nodes.apart or "was lost at step" in first.printed
        assert first.left() == []
