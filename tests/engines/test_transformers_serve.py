"""A real server of the protocol, `transformers serve` with the tiny model: the same responses as in process."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from simpo.onpolicy.generate import run_generate
from simpo.onpolicy.settings import GenerateSettings
from simpo.store import read_records
from tests.served import NEEDED, free_port, serving

pytestmark = pytest.mark.slow

for name in NEEDED:
    pytest.importorskip(name, reason="transformers serve needs pip install 'transformers[serving]'")


def settings_of(tiny_dir: str, folder: Path, name: str, rows: int, **options: Any) -> GenerateSettings:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(f'{{"prompt": "Question {row}: why?"}}\n' for row in range(rows)))
    defaults: dict[str, Any] = {
        "model_name_or_path": tiny_dir, "dataset_name": str(data), "output_dir": str(folder / name),
        "max_new_tokens": 8, "temperature": 0.0, "num_responses": 1,
    }  # fmt: skip
    return GenerateSettings(**defaults | options)


def texts_of(settings: GenerateSettings) -> list[list[str]]:
    records = list(read_records(settings.output_dir))
    assert all(record["error"] is None for record in records), records
    return [[response["text"] for response in record["responses"]] for record in records]


def test_the_same_responses_as_in_process_and_a_restart_loses_nothing(
    tiny_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    here = settings_of(tiny_dir, tmp_path, "here", 6, use_cpu=True)
    run_generate(here)
    port, log = free_port(), tmp_path / "serve.log"
    there: dict[str, Any] = {"engine": "server", "server_urls": [f"http://127.0.0.1:{port}/v1"], "max_in_flight": 4}
    with serving(tiny_dir, port, log) as first:
        for api in ("text", "chat"):  # greedy: another prompt, say with two BOS, would give other texts
            settings = settings_of(tiny_dir, tmp_path, api, 6, server_api=api, **there)
            run_generate(settings)
            assert texts_of(settings) == texts_of(here)

        many = settings_of(
            tiny_dir, tmp_path, "many", 60, server_api="text", temperature=0.8, num_responses=2,
            **there,
        )  # fmt: skip
        restarted = threading.Event()

        def restart() -> None:
            folder = Path(many.output_dir)
            while sum(path.read_bytes().count(b"\n") for path in folder.glob("records-*")) < 10:
                time.sleep(0.01)
            os.kill(first.pid, signal.SIGKILL)
            with serving(tiny_dir, port, log):
                restarted.set()
                over.wait(120)

        over = threading.Event()
        thread = threading.Thread(target=restart)
        thread.start()
        run_generate(many)
        over.set()
        thread.join()
    assert restarted.is_set() and [len(texts) for texts in texts_of(many)] == [2] * 60
