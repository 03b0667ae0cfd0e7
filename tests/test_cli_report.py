"""`simpo report`, and the report at the end of `simpo train`."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from simpo import cli
from simpo.errors import Lost
from tests.launching import Calls


@pytest.fixture
def reporting() -> Any:
    """The module that writes reports, imported before `calls` puts something else in the place of `simpo.run`."""
    return importlib.import_module("simpo.analysis.report.run_report")


def log_of_a_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    return folder


def test_report_of_a_run_goes_into_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = log_of_a_run(tmp_path / "run")
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"written: {folder}/report.html\n" and (folder / "report.html").is_file()


def test_report_of_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [str(log_of_a_run(tmp_path / name)) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *runs]) == 0 and (tmp_path / "report.html").is_file()
    assert cli.main(["report", *runs, "--output", "a/both.html"]) == 0 and (tmp_path / "a" / "both.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing"], "missing is no folder; give the output_dir of a run"),
        (["."], "neither run_manifest.json nor log.jsonl"),
        (["run", "--output=there/x.html"], "there is no folder there; make it first"),
        (["run", "--output=run"], "is a folder; name a file in it, such as run/report.html"),
        (["run", "--beta=2"], "simpo report has no setting --beta"),
    ],
)
def test_report_says_what_is_wrong(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_of_a_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_report_of_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = log_of_a_run(tmp_path / "run")
    folder.chmod(0o555)
    assert cli.main(["report", str(folder)]) == 2
    assert "report.html: the page cannot be written: Permission denied" in capsys.readouterr().err


def test_train_ends_with_a_report(
    reporting: Any, config: str, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = log_of_a_run(tmp_path / "run")
    assert cli.main(["train", config, f"--output_dir={folder}"]) == 0
    assert capsys.readouterr().out == f"Report: {folder}/report.html\n" and (folder / "report.html").is_file()


def test_a_report_that_is_not_wanted(
    config: str, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = log_of_a_run(tmp_path / "run")
    assert cli.main(["train", config, "--no-report", f"--output_dir={folder}"]) == 0
    said = capsys.readouterr()
    assert said.out + said.err == "" and not (folder / "report.html").exists() and len(calls) == 1


def test_a_report_that_fails_does_not_fail_the_run(
    reporting: Any,
    config: str,
    calls: Calls,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*given: Any) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(reporting, "write_report", broken)
    assert cli.main(["train", config, f"--output_dir={tmp_path}"]) == 0
    said = f"No report: two lines; try again with: simpo report {tmp_path}\n"
    assert capsys.readouterr().err == said and len(calls) == 1


def test_a_lost_run_leaves_its_report(
    reporting: Any,
    config: str,
    calls: Calls,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lose(settings: Any, **given: Any) -> None:
        raise Lost("the loss is nan")

    monkeypatch.setattr(sys.modules["simpo.run"], "run_training", lose)
    folder = log_of_a_run(tmp_path / "run")
    assert cli.main(["train", config, f"--output_dir={folder}"]) == 2
    assert "the loss is nan" in capsys.readouterr().err and (folder / "report.html").is_file()
