"""A judge behind a real server of the protocol, `transformers serve`, which is killed and started again midway."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from simpo.onpolicy.annotate import AnnotateSettings, run_annotate
from simpo.store import read_records
from tests.onpolicy.made import generation, store_in
from tests.served import NEEDED, free_port, serving, teach_to_say

pytestmark = pytest.mark.slow

for name in NEEDED:
    pytest.importorskip(name, reason="transformers serve needs pip install 'transformers[serving]'")


def scores_of(folder: Path) -> list[tuple[str, Any, Any]]:
    return [(record["id"], record["scores"], record["error"]) for record in read_records(folder)]


def test_a_restart_of_the_judges_server_loses_nothing(tiny_dir, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    model = teach_to_say(tiny_dir, tmp_path / "judge", "Better is [[A]]")
    (tmp_path / "ask.jinja").write_text(
        "{{ conversation }}\n{{ response_a }}\n{{ response_b }}\nSay [[A]], [[B]] or [[C]]."
    )
    texts = ["Yes.", "No, never.", "It may well be."]
    generations = store_in(tmp_path)("g", [generation(row, texts) for row in range(12)])
    port, log = free_port(), tmp_path / "serve.log"

    def settings(out: str) -> AnnotateSettings:
        judge = {"kind": "judge", "model": model, "base_urls": f"http://127.0.0.1:{port}/v1", "max_new_tokens": 12,
                 "prompt_template": str(tmp_path / "ask.jinja"), "max_in_flight": 3}  # fmt: skip
        return AnnotateSettings(generations, str(tmp_path / out), {"judge": judge}, prompts_per_batch=2, use_cpu=True)

    restarted, over = threading.Event(), threading.Event()
    with serving(model, port, log) as first:
        run_annotate(settings("whole"))

        def restart() -> None:
            while sum(path.read_bytes().count(b"\n") for path in (tmp_path / "s").glob("records-*")) < 4:
                time.sleep(0.01)
            os.kill(first.pid, signal.SIGKILL)
            with serving(model, port, log):
                restarted.set()
                over.wait(120)

        thread = threading.Thread(target=restart)
        thread.start()
        run_annotate(settings("s"))
        over.set()
        thread.join()
    assert restarted.is_set()
    assert scores_of(tmp_path / "s") == scores_of(tmp_path / "whole")
    # it names the first place whatever stands there: no preference
    assert [scores for _, scores, _ in scores_of(tmp_path / "s")] == [{"judge": [0.5, 0.5, 0.5]}] * 12
