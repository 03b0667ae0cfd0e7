"""The marks of the soak stand where a run passes."""

import importlib
from pathlib import Path

from benchmarks.soak import runs
from simpo.run import run_training
from simpo.settings import read_settings


def test_a_run_passes_every_mark(tmp_path: Path, monkeypatch) -> None:
    passed = set()
    for mark, phase in runs._MARKS:
        module, _, path = mark.partition(":")
        *outer, name = path.split(".")
        owner = importlib.import_module(module)
        for part in outer:
            owner = getattr(owner, part)

        def marked(*args, wrapped=getattr(owner, name), mark=mark, **named):  # noqa: B008
            passed.add(mark)
            return wrapped(*args, **named)

        assert phase in runs.PHASES
        monkeypatch.setattr(owner, name, marked)
    run_training(read_settings(runs.make_config(tmp_path, "run", max_steps=2, eval_steps=1, monitor="off")))
    assert passed == {mark for mark, _ in runs._MARKS}
