"""The report of a run from what lies in its folder, whole or cut short; several runs side by side."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpo.analysis.report import before_after, curves
from simpo.analysis.report.blocks import Files, Page, Picture, Samples, Section, Table, Text
from simpo.analysis.report.run_files import names_of, read_run
from simpo.analysis.report.run_report import report_page, write_report
from simpo.errors import ConfigError
from tests.analysis.made import population
from tests.analysis.test_report_page import HOSTILE, Tags

Make = Callable[..., Path]


def log_lines(steps: int, evaluate: int = 10, slope: float = 1.0) -> list[dict[str, Any]]:
    """What a run logs: a step takes a second and 1,000 tokens, an evaluation 5 seconds."""
    lines: list[dict[str, Any]] = []
    seconds = 0.0
    for step in range(1, steps + 1):
        seconds += 1
        part = slope * step / steps
        numbers = {"loss": 1.5 - part, "grad_norm": 2.0, "learning_rate": 1e-6, "rewards/margins": part}
        numbers |= {"rewards/chosen": -2 - part, "rewards/rejected": -2 - 2 * part}
        numbers |= {"rewards/accuracies": 0.5 + 0.4 * part, "logps/chosen": -1 - part, "logps/rejected": -1 - 2 * part}
        counts = {"num_tokens": 1000 * step, "elapsed": seconds, "memory_gib": 3.5}
        lines.append({"step": step, **numbers, "epoch": step / 50, **counts})
        if step % evaluate == 0:
            seconds += 5
            held_out = {"loss": 1.5 - part / 2, "rewards/accuracies": 0.5 + part / 4, "runtime": 5.0}
            lines.append({"step": step, **{f"eval_{k}": v for k, v in held_out.items()}, "elapsed": seconds})
    return lines


MANIFEST: dict[str, Any] = {
    "status": "finished",
    "started": "2026-01-01T10:00:00+0000",
    "device": "cpu",
    "packages": {"torch": "2.13.0", "deepspeed": None},
    "settings": {"beta": 2.5, "hub_token": "hf_secret", "dataset_mixer": {"pairs.jsonl": 1.0}, "num_train_epochs": 3.0},
    "recommended": {
        "learning_rate": {"chosen": 1e-6, "recommended": "3e-7 to 1e-6"},
        "beta": {"chosen": 2.5, "recommended": "2 to 10"},
    },
    "advice": [
        {"name": "batch", "level": "warning", "message": "16 pairs a step.", "source": "table 8", "fix": "total: 128"}
    ],
    "data_warnings": ["end_missing (train): 3 pairs have no end token"],
    "data": {
        "train": {"total": 500, "kept": 480, "dropped": {"tie": 20}, "prompt_mean": 154.2, "prompt_max": 881},
        "eval": {"total": 100, "kept": 100},
    },
}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(name, log, **manifest) -> the folder of a run; with probes it has what monitors write."""

    def made(name: str, log: Any, *, probes: bool = False, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        (folder / "run_manifest.json").write_text(json.dumps(MANIFEST | changes))
        if probes:
            write_monitor(folder / "monitor")
        return folder

    return made


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is not about pictures, which take time."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def write_monitor(folder: Path) -> None:
    folder.mkdir()
    before = population(300, seed=1)
    for step, part in ((0, 0.0), (40, 1.0)):
        columns = {name: getattr(before, name) for name in ("row", "chosen_lengths", "rejected_lengths")}
        columns |= {"ref_chosen": before.chosen, "ref_rejected": before.rejected, "chosen": before.chosen}
        columns["rejected"] = before.rejected - part * 0.3 * before.rejected_lengths
        pq.write_table(pa.table(columns), folder / f"probe-{step:06d}.parquet")
    raised = [
        {"step": step, "name": "drop", "level": "warn", "text": f"fell by {step}", "advice": "lower it"}
        for step in (5, 9)
    ]
    raised.append({"step": 7, "name": "nan", "level": "stop", "text": HOSTILE, "advice": ""})
    (folder / "warnings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in raised))
    written = [
        {"step": step, "prompt": f"p{at} {HOSTILE}", "response": f"r{at} of {step} {HOSTILE}", "tokens": 10 + step,
         "stopped": step == 0, "repeated": 0.5, "entropy": 1.25}
        for step in (0, 20, 40) for at in range(2)
    ]  # fmt: skip
    (folder / "generations.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in written) + '{"step": 60, "pro'
    )


def section(page: Page, title: str) -> Section:
    (found,) = [one for one in page.sections if one.title == title]
    return found


def of_kind(page: Page, title: str, kind: Any) -> list[Any]:
    return [block for block in section(page, title).blocks if isinstance(block, kind)]


def test_the_page_of_a_whole_run(make: Make) -> None:
    folder = make("run", log_lines(40), probes=True)
    path = write_report([folder])
    assert path == folder / "report.html" and path.stat().st_size < 5e6
    found = Tags(path.read_text(encoding="utf-8"))
    assert (
        found.named("script") == [] and found.text.count(HOSTILE) == 1 + 2 * 3
    )  # a warning; two prompts with two responses
    sources = [str(image["src"]) for image in found.named("img")]
    assert len(sources) == 9 + 7 and all(one.startswith("data:image/png;base64,") for one in sources)
    links = [str(link["href"]) for link in found.named("a")]
    assert all(link.startswith("#") or (folder / link).is_file() for link in links) and "log.jsonl" in links
    assert "hf_secret" not in found.text


def test_lead_numbers(make: Make, undrawn: None) -> None:
    lead = report_page([make("run", log_lines(40))]).lead
    assert lead["state"] == "finished" and lead["steps"] == "40" and lead["loss, held-out"] == "1"
    assert (
        lead["reward accuracy, held-out"] == "75.0%" and lead["its 95% interval"] == "66% to 82%"
    )  # Wilson, 75 of 100
    assert lead["time"] == "60 s" and lead["tokens per second, median"] == "1,000"
    assert lead["most memory of the process"] == "3.5 GiB"


def test_memory_says_whose_it_is(make: Make, undrawn: None) -> None:
    gpu = report_page([make("gpu", log_lines(4), device="NVIDIA H100")]).lead
    assert gpu["most memory of the first GPU"] == "3.5 GiB"


def test_warnings_come_gravest_first_and_repeats_are_counted(make: Make, undrawn: None) -> None:
    found = of_kind(report_page([make("run", log_lines(4), probes=True)]), "Warnings", Text)
    assert [one.level for one in found] == ["stop", "warn", "warn", "warn"]
    assert [one.text for one in found[1:]] == [
        "batch: 16 pairs a step. Write total: 128. (table 8)",
        "end_missing (train): 3 pairs have no end token",
        "drop, step 5, again until step 9 (2 times): fell by 9\n→ lower it",
    ]


def test_settings_beside_recommended_ones(make: Make, undrawn: None) -> None:
    (table,) = of_kind(report_page([make("run", log_lines(4))]), "Settings", Table)
    assert [list(row) for row in table.rows] == [
        ["learning_rate", "1e-06", "3e-7 to 1e-6"], ["beta", "2.5", "2 to 10"],
        ["dataset_mixer", "pairs.jsonl: 1", ""], ["num_train_epochs", "3", ""],
    ]  # fmt: skip


def test_what_became_of_the_data(make: Make, undrawn: None) -> None:
    (table,) = of_kind(report_page([make("run", log_lines(4))]), "Data", Table)
    assert list(table.rows[0][:6]) == ["train", "500", "480", "20 tie", "0", "154 / 881"]


def test_before_and_after(make: Make) -> None:
    page = report_page([make("run", log_lines(40), probes=True)])
    pictures = of_kind(page, "Before and after", Picture)
    titles = {picture.name: picture.title for picture in pictures}
    assert titles["accuracies.png"].startswith("SimPO reward order is right most often in after")
    assert list(titles)[5:] == ["reward-against-likelihood.png", "divergences.png"]
    (about,) = of_kind(page, "Before and after", Text)
    assert about.text.startswith("On 300 held-out pairs after step 40; before: the initial policy.")
    (table,) = of_kind(page, "Samples", Table)
    assert list(table.rows[-1]) == ["step 40", "2", "50", "0%", "50%", "1.25"]
    (samples,) = of_kind(page, "Samples", Samples)
    assert [list(texts) for _, texts in samples.rows] == [["step 0", "step 40"]] * 2
    assert samples.rows[1][1]["step 40"].startswith("r1 of 40")


def test_a_probe_without_the_initial_policy_is_compared_with_the_first_one(make: Make) -> None:
    folder = make("run", log_lines(4), probes=True)
    for path in (folder / "monitor").glob("probe-*"):
        pq.write_table(pq.read_table(path).drop_columns(["ref_chosen", "ref_rejected"]), path)
    assert len(of_kind(report_page([folder]), "Before and after", Picture)) == 7


def test_a_run_that_only_saw_the_initial_policy_shows_no_change_of_it(make: Make) -> None:
    folder = make("run", log_lines(4), probes=True)
    (folder / "monitor" / "probe-000040.parquet").unlink()
    assert len(of_kind(report_page([folder]), "Before and after", Picture)) == 5


def test_a_broken_probe_is_told_and_the_rest_is_there(make: Make) -> None:
    folder = make("run", log_lines(4), probes=True)
    (folder / "monitor" / "probe-000040.parquet").write_bytes(b"PAR1 cut")
    page = report_page([folder])
    (note,) = of_kind(page, "Before and after", Text)
    assert "probe-000040.parquet cannot be read" in note.text and len(of_kind(page, "Training", Picture)) == 9


def test_a_killed_run_has_a_report_that_says_so(make: Make, undrawn: None) -> None:
    folder = make("run", log_lines(23), status="running")
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 24, "lo')
    page = report_page([folder])
    first = of_kind(page, "Warnings", Text)[-1]
    assert page.lead["state"] == "not finished"
    assert first.text.startswith(
        "This run has not finished: it goes on, or it was stopped. Its log ends at step 23, epoch 0.46 of 3"
    )


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run_manifest.json", '{"status": "runn', "run_manifest.json cannot be read"),
        ("run_manifest.json", "[1]", "run_manifest.json holds no JSON object"),
        ("log.jsonl", '{"step": 1, "loss": 2}\nnot json\n[3]\n{"step": 2, "loss": 1.0}\n', "log.jsonl: 2 of 4 lines"),
        ("eval_results.json", "", "eval_results.json cannot be read"),
    ],
)  # fmt: skip
def test_files_that_are_no_json_are_told(make: Make, undrawn: None, name: str, content: str, said: str) -> None:
    folder = make("run", log_lines(12))
    (folder / name).write_text(content)
    assert any(said in one.text for one in of_kind(report_page([folder]), "Warnings", Text))


def test_lines_of_odd_content_are_survived(make: Make) -> None:
    odd: list[dict[str, Any]] = [
        {"step": None, "loss": 1.0},
        {"step": 3},
        {"step": 3, "loss": "nan"},
        {"loss": 2.0},
        {"step": 3, "loss": 1.0, "elapsed": "x", "num_tokens": None, "eval_runtime": []},
    ]
    page = report_page([make("run", [*log_lines(2), *odd, *log_lines(2)])])
    assert len(of_kind(page, "Training", Picture)) == 8 and page.lead["steps"] == "3"


def test_a_folder_with_nothing_but_a_log(tmp_path: Path, undrawn: None) -> None:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log_lines(3)))
    page = report_page([tmp_path])
    assert "There is no run_manifest.json" in of_kind(page, "Warnings", Text)[0].text


def test_a_run_of_the_supervised_stage_is_read_from_its_state(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(
        json.dumps({"log_history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]})
    )
    (picture,) = of_kind(report_page([tmp_path]), "Training", Picture)
    assert picture.title == "Loss: 2 to 1"


@pytest.mark.parametrize("count", [0, 1])
def test_too_little_for_curves(make: Make, count: int) -> None:
    page = report_page([make("run", log_lines(count), status="running")])
    assert of_kind(page, "Training", Picture) == [] and "too little" in of_kind(page, "Training", Text)[0].text


def test_what_was_not_logged_makes_no_picture(make: Make) -> None:
    page = report_page([make("run", [{"step": step, "loss": 1.0 / step, "eval_loss": None} for step in (1, 2, 3)])])
    (picture,) = of_kind(page, "Training", Picture)
    assert picture.name == "loss.png" and picture.title == "Loss: 1 to 0.333"


def test_a_loss_that_is_no_number_is_told(make: Make, undrawn: None) -> None:
    lines = log_lines(12)
    lines[4]["loss"] = float("nan")
    page = report_page([make("run", lines)])
    assert of_kind(page, "Warnings", Text)[0] == Text(
        "Loss or gradient norm was no finite number once at step 5.", "stop"
    )


def test_gradients_that_loss_scaling_leaves_out_are_none(make: Make, undrawn: None) -> None:
    lines = log_lines(12)
    lines[4]["grad_norm"] = float("inf")
    page = report_page([make("run", lines, settings={"fp16": True})])
    assert all(text.level != "stop" for text in of_kind(page, "Warnings", Text))


def test_dollars_in_names_are_no_formulas(make: Make) -> None:
    runs = [make(name, log_lines(3)) for name in ("$x_{$", "$a$b")]
    assert of_kind(report_page(runs), "Training", Picture)[0].name == "loss.png"


def test_numbers_of_monitors_are_drawn(make: Make) -> None:
    lines = [
        {"step": step, "monitor/chosen_drop": step / 10, "monitor/own_idea": 1.0 / step, "monitor/entropy": "x"}
        for step in (1, 2, 5)
    ]
    known, unknown = of_kind(report_page([make("run", lines)]), "Monitors", Picture)
    assert known.title == "Fall of chosen log-probs: 0.1 to 0.5" and known.name == "monitor-chosen_drop.png"
    assert unknown.title == "Own idea: 1 to 0.2"


def test_several_runs_side_by_side(make: Make, tmp_path: Path) -> None:
    one = make("one", log_lines(40), probes=True)
    two = make("two", log_lines(40, slope=0.5), probes=True, settings={**MANIFEST["settings"], "beta": 10.0, "seed": 1})
    page = report_page([one, two], tmp_path)
    (runs,) = of_kind(page, "Runs", Table)
    assert [row[0] for row in runs.rows] == ["one", "two"] and [row[3] for row in runs.rows] == ["75.0%", "62.5%"]
    (settings,) = of_kind(page, "Settings", Table)
    assert [list(row) for row in settings.rows] == [["beta", "2.5", "10"], ["seed", "", "1"]]
    assert [one.name for one in of_kind(page, "Training", Picture)[:3]] == [
        "loss.png",
        "rewards-chosen.png",
        "rewards-rejected.png",
    ]
    (evaluation,) = of_kind(page, "Evaluation", Table)
    assert list(evaluation.rows[0]) == ["loss", "1", "1.25"]
    (samples,) = of_kind(page, "Samples", Samples)
    assert list(samples.rows[0][1]) == ["before", "one, step 40", "two, step 40"]
    (files,) = of_kind(page, "Files", Files)
    assert ("one/log.jsonl", "one: every number that was logged, a line of JSON each") in files.rows
    assert all(text.text.startswith(("one: ", "two: ")) for text in of_kind(page, "Warnings", Text))


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True)
        (tmp_path / parent / "run" / "log.jsonl").touch()
    a, b = (read_run(tmp_path / parent / "run") for parent in ("a", "b"))
    assert names_of([a, b]) == ["a/run", "b/run"] and names_of([a, a]) == ["run", "run (2)"]


def test_without_matplotlib_the_page_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = report_page([make("run", log_lines(40), probes=True)])
    for title in ("Training", "Before and after"):
        assert (
            of_kind(page, title, Picture) == [] and "pip install 'simpo[plots]'" in of_kind(page, title, Text)[0].text
        )
    (table,) = of_kind(page, "Training", Table)
    assert ["loss", "0.5"] in [list(row) for row in table.rows]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder; give the output_dir of a run"):
        report_page([tmp_path / "missing"])
    with pytest.raises(ConfigError, match=r"neither run_manifest.json nor log.jsonl"):
        report_page([tmp_path])


def test_speed_leaves_evaluations_and_monitors_out() -> None:
    lines = log_lines(40)
    monitors = {"step": 20, "monitor/accuracy": 0.5}
    after = [line for line in lines if line["step"] > 20]
    at = len(lines) - len(after)
    watched = [*lines[:at], monitors | {"elapsed": lines[at - 1]["elapsed"] + 3}]
    watched += [line | {"elapsed": line["elapsed"] + 3} for line in after]
    for log in (lines, watched):
        speeds = [line["tokens_per_second"] for line in curves.with_speed(log) if "tokens_per_second" in line]
        assert speeds == pytest.approx([1000.0] * 39)


def test_smoothing_keeps_lines_and_levels() -> None:
    line = np.linspace(0, 6, 300)
    assert curves.smoothed(line)[10:-10] == pytest.approx(line[10:-10])
    assert curves.smoothed([3.0] * 100) == pytest.approx([3.0] * 100)
    spiked = np.full(300, 2.0)
    spiked[150] = 400
    assert curves.smoothed(spiked, log=True) == pytest.approx([2.0] * 300)
    assert curves.smoothed(spiked).max() > 20
    noise = np.random.default_rng(0).normal(size=3000)
    assert np.abs(curves.smoothed(noise)).max() < 0.6  # the ends too, which see half a window


def test_pictures_have_one_size_and_something_in_them(make: Make) -> None:
    for picture in of_kind(report_page([make("run", log_lines(70))]), "Training", Picture):
        assert struct.unpack(">I", picture.png[16:20]) == (800,)
        assert len(picture.png) > 8000 and picture.title


def test_long_texts_are_cut_with_a_count() -> None:
    assert before_after._cut("x" * 3005) == "x" * 3000 + "\n… (5 characters more)"
