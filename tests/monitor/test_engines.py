"""Monitors and the check of losses under DDP, ZeRO-2 and ZeRO-3 on two processes."""

import json
import sys

import pytest

from tests import launching

WORKER = launching.WORKERS / "monitors.py"
ENGINES = {"ddp": "DDP x 2", "zero2": "DeepSpeedEngine stage 2 x 2", "zero3": "DeepSpeedEngine stage 3 x 2"}


def start(engine: str, folder, *settings: str) -> dict:
    """Run the worker, and read its report."""
    out = folder / "out.json"
    if engine == "plain":
        launching.run([sys.executable, str(WORKER), str(out), *settings])
    elif engine == "ddp":
        launching.torchrun(WORKER, str(out), *settings)
    else:
        launching.deepspeed(int(engine[-1]), folder, WORKER, str(out), *settings)
    report = json.loads(out.read_text())
    assert report["engine"] == ENGINES.get(engine, "plain x 1")
    return report


@pytest.mark.multiprocess
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_does_not_notice(tmp_path, engine) -> None:
    """The same weights bit for bit, with dropout; and the numbers of one process."""
    reports = {}
    for name, folder, monitor in (("with", tmp_path / "a", "stop"), ("without", tmp_path / "b", "off")):
        folder.mkdir()
        settings = (f'monitor="{monitor}"', 'eval_strategy="steps"', "eval_steps=2", "disable_dropout=false")
        reports[name] = start(engine, folder, *settings)
    assert reports["with"]["weights"] == reports["without"]["weights"]
    assert reports["with"]["step"] == 6 and not reports["with"]["error"]
    looks = [entry for entry in reports["with"]["logs"] if "monitor/entropy" in entry]
    assert [entry["step"] for entry in looks] == [0, 2, 4, 6]
    generations = [
        json.loads(line) for line in (tmp_path / "a/out.json.run/monitor/generations.jsonl").read_text().splitlines()
    ]
    assert len(generations) == 4 * 3


@pytest.mark.multiprocess
@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_the_numbers_are_those_of_one_process(tmp_path, engine) -> None:
    reports = []
    for name in ("plain", engine):
        (tmp_path / name).mkdir()
        reports.append(start(name, tmp_path / name, 'eval_strategy="steps"', "eval_steps=2"))
    looks = [[entry for entry in report["logs"] if "monitor/entropy" in entry] for report in reports]
    for one, several in zip(*looks, strict=True):
        assert several == pytest.approx(one, abs=1e-3)


@pytest.mark.multiprocess
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_a_pair_whose_loss_is_nan(tmp_path, engine) -> None:
    """Both processes stop before the update and name it; the checkpoint holds the weights before the step."""
    settings = ('monitor="off"',)
    report = start(engine, tmp_path, "broken=true", *settings)
    assert report["step"] == 1 and report["same"] and report["saved"] > 10
    texts = [(tmp_path / f"out.json.rank{rank}").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1] and 'row 30: "' in texts[0] and "loss of 1 of the 8 pairs of step 2" in texts[0]
    resumed = start(engine, tmp_path, f'resume="{tmp_path}/out.json.run/checkpoint-1"', *settings)
    assert resumed["step"] == 6 and not resumed["error"]
    (tmp_path / "sound").mkdir()
    assert start(engine, tmp_path / "sound", *settings)["weights"] == resumed["weights"]
