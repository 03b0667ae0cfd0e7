"""AlpacaEval: raw win rates against public leaderboards, files, and the hand-over to the official package."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simpo.cli import main
from simpo.errors import ConfigError, DataError, EngineError
from simpo.evals.judges.alpaca_eval import (
    ANNOTATOR,
    AlpacaEvalSettings,
    judge_alpaca_eval,
    read_annotations,
    read_answers,
    win_rates,
)
from simpo.evals.judges.judging import JudgeServer
from simpo.evals.results import read_result
from tests.evals.conftest import ALPACA, write_rows

BOARDS = Path(__file__).with_name("alpaca_leaderboards.csv")
ANNOTATIONS = Path(__file__).with_name("alpaca_annotations.json")


def board_rows() -> list[dict[str, str]]:
    with BOARDS.open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


@pytest.mark.parametrize("row", board_rows(), ids=lambda row: f"{row['board']}-{row['model']}")
def test_public_leaderboards(row: dict[str, str]) -> None:
    """Preferences with a model's counts of wins, losses and draws give its published numbers."""
    counts = [int(row[name]) for name in ("n_wins", "n_wins_base", "n_draws")]
    preferences = np.random.default_rng(0).permutation(np.repeat([2.0, 1.0, 1.5], counts)).tolist()
    metrics, found = win_rates(preferences)
    assert [found["wins"], found["losses"], found["draws"]] == counts
    assert metrics["discrete_win_rate"].value == pytest.approx(float(row["discrete_win_rate"]), abs=1e-6)
    if not row["board"].startswith("weighted"):
        assert metrics["win_rate"].value == pytest.approx(float(row["win_rate"]), abs=1e-6)
        assert metrics["win_rate"].stderr == pytest.approx(float(row["standard_error"]), abs=1e-6)


def test_a_public_annotation_file_gives_the_leaderboard(tmp_path: Path) -> None:
    """All 805 preferences of one model: 1, 2, the old 0 for a draw, and one null."""
    public = json.loads(ANNOTATIONS.read_text(encoding="utf-8"))
    board = public["leaderboard"]
    assert len(public["preferences"]) == 805
    names = {key: public[key] for key in ("generator_1", "generator_2", "annotator")}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations(public["preferences"], **names)))
    result = read_annotations(path, "text_davinci_001")
    rate = result.metrics["win_rate"]
    assert rate.value == pytest.approx(board["win_rate"], abs=1e-9)
    assert rate.stderr == pytest.approx(board["standard_error"], abs=1e-9)
    assert result.metrics["discrete_win_rate"].value == pytest.approx(board["discrete_win_rate"], abs=1e-9)
    assert result.counts == {
        "instructions": 805, "wins": board["n_wins"], "losses": board["n_wins_base"], "draws": board["n_draws"],
        "no_preference": 805 - board["n_total"],
    }  # fmt: skip


def annotations(preferences: list[Any], **changes: Any) -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"Do {number}", "output_1": "abcd", "generator_1": "base", "output_2": "é" * (number + 1),
            "generator_2": "mine", "annotator": "weighted_alpaca_eval_gpt4_turbo", "preference": preference,
        } | changes
        for number, preference in enumerate(preferences)
    ]  # fmt: skip


def test_weighted_preferences_by_hand(tmp_path: Path) -> None:
    """Points 1, 0.75, 0, 0.5 of 4: 56.25; null, NaN and what is outside are none; an old 0 is a draw."""
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations([2, 1.75, 1.0, 0, None, float("nan"), 3, True])))
    result = read_annotations(path)
    rate = result.metrics["win_rate"]
    error = 100 * np.std([1, 0.75, 0, 0.5], ddof=1) / 2
    assert rate.value == 56.25 and rate.stderr == pytest.approx(error)
    assert rate.low == pytest.approx(56.25 - 1.96 * error)
    assert result.metrics["discrete_win_rate"].value == 62.5
    assert result.counts == {"instructions": 8, "wins": 2, "losses": 1, "draws": 1, "no_preference": 4}
    assert result.metrics["length"].value == 4.5 and result.metrics["baseline_length"].value == 4
    assert (result.model, result.settings["baseline"]) == ("mine", "base")


def test_wrong_annotations(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations([None])))
    with pytest.raises(DataError, match="none of 1 annotations has a preference"):
        read_annotations(path)
    path.write_text(json.dumps(annotations([1, 2]) + annotations([2], generator_2="other")))
    with pytest.raises(DataError, match=r"not \['mine', 'other'\] with \['base'\]"):
        read_annotations(path)
    path.write_text(json.dumps([{"instruction": "Do"}]))
    with pytest.raises(DataError, match="annotation 0 lacks output_1, generator_1"):
        read_annotations(path)
    path.write_text(json.dumps(annotations([1])))
    with pytest.raises(DataError, match="compare other as generator_2"):
        read_annotations(path, "other")


def answers(name: str, length: int = 3) -> list[dict[str, Any]]:
    return [{"instruction": f"Do {n}", "output": "x" * length, "generator": name, "dataset": "d"} for n in range(4)]


def test_answers_are_read(tmp_path: Path) -> None:
    assert read_answers(write_rows(tmp_path / "a.json", answers("mine"))) == answers("mine")
    with pytest.raises(DataError, match="answer 1 lacks output, a text"):
        read_answers(write_rows(tmp_path / "b.json", [answers("mine")[0], {"instruction": "Do", "generator": "mine"}]))
    with pytest.raises(DataError, match=r"not of \['mine', 'other'\]"):
        read_answers(write_rows(tmp_path / "c.json", [answers("mine")[0], answers("other")[0]]))


OFFICIAL = """
import json, os, pathlib
KEYS = ("OPENAI_API_KEY", "OPENAI_API_BASE", "IS_ALPACA_EVAL_2")
class Row(dict): pass
class Frame:
    def __init__(self, rows): self.loc = rows
def evaluate(model_outputs, annotators_config, name, output_path, reference_outputs, precomputed_leaderboard,
             is_return_instead_of_print, **rest):
    from alpaca_eval.metrics import glm_winrate
    gamed = glm_winrate.hf_hub_download(repo_id="tatsu-lab/alpaca_eval", filename="df_gamed.csv", repo_type="dataset")
    folder = pathlib.Path(output_path, annotators_config)
    folder.mkdir(parents=True, exist_ok=True)
    mine, theirs = (json.loads(pathlib.Path(path).read_text()) for path in (model_outputs, reference_outputs))
    preferences = [1.9, 1.2, 2.0, None]
    rows = [{"instruction": a["instruction"], "output_1": b["output"], "generator_1": b["generator"],
             "output_2": a["output"], "generator_2": a["generator"], "annotator": annotators_config, "preference": p,
             "preference_price_per_example": 0.25} for a, b, p in zip(mine, theirs, preferences)]
    (folder / "annotations.json").write_text(json.dumps(rows))
    seen = {"rest": rest, "gamed": gamed, "env": {key: os.environ.get(key) for key in KEYS}}
    pathlib.Path(output_path, "seen.json").write_text(json.dumps(seen))
    rate = float(os.environ.get("FAKE_RATE", "70"))
    return Frame({name: {"win_rate": rate, "length_controlled_winrate": 61.5, "lc_standard_error": 0.5}}), None
"""


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that stands for alpaca_eval in the child process; without the hub."""
    package = tmp_path / "site/alpaca_eval"
    (package / "metrics").mkdir(parents=True)
    (package / "__init__.py").write_text(OFFICIAL)
    (package / "constants.py").write_text("def ALPACAEVAL_REFERENCE_OUTPUTS():\n    raise ConnectionError('no hub')\n")
    (package / "metrics/__init__.py").write_text("")
    (package / "metrics/glm_winrate.py").write_text("def hf_hub_download(**_):\n    raise OSError('no hub')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("MY_KEY", "secret-1")
    write_rows(tmp_path / "mine.json", answers("mine"))
    write_rows(tmp_path / "base.json", answers("base", 5))
    (tmp_path / "df_gamed.csv").write_text("index\n")
    return tmp_path


def settings_of(folder: Path, **options: Any) -> AlpacaEvalSettings:
    given: dict[str, Any] = {
        "answers": str(folder / "mine.json"),
        "baseline_answers": str(folder / "base.json"),
        "output_dir": str(folder / "out"),
        "df_gamed": str(folder / "df_gamed.csv"),
        "server": JudgeServer(base_urls=("http://judge/v1",), api_key_env="MY_KEY"),
    }
    return AlpacaEvalSettings(**given | options)


def test_hand_over(official: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = judge_alpaca_eval(settings_of(official))
    out = official / "out"
    assert result.metrics["lc_win_rate"].value == 61.5 and result.metrics["lc_win_rate"].stderr == 0.5
    lc = result.metrics["lc_win_rate"]
    assert (lc.low, lc.high) == (pytest.approx(60.52), pytest.approx(62.48))
    assert result.metrics["win_rate"].value == pytest.approx(70) and result.counts["no_preference"] == 1
    assert result.judge == result.settings["annotator"] == "weighted_alpaca_eval_gpt4_turbo"
    assert result.warnings == ["25.0% of 4 judgments are left out (1 no preference): the numbers stand on the rest"]
    seen = json.loads((out / "seen.json").read_text())
    assert seen["env"] == {
        "OPENAI_API_KEY": "secret-1", "OPENAI_API_BASE": "http://judge/v1", "IS_ALPACA_EVAL_2": "True",
    }  # fmt: skip
    assert seen["gamed"] == str(official / "df_gamed.csv")
    assert seen["rest"] == {
        "caching_path": str(out / "annotations_cache.json"),
        "metric_kwargs": {"save_weights_dir": str(out / "weights")},
    }
    command = (out / "alpaca_eval_command.txt").read_text()
    assert command.startswith("alpaca_eval evaluate \\\n  --model_outputs ") and "mine.json" in command
    assert "--annotators_config weighted_alpaca_eval_gpt4_turbo" in command
    assert not any("secret-1" in path.read_text() for path in out.rglob("*.*") if path.name != "seen.json")
    estimate, _, spent = capfd.readouterr().out.splitlines()
    assert estimate.startswith("estimate: gpt-4-1106-preview: 4 calls, about ")
    assert spent.startswith("spent: $1.00 as alpaca_eval counts")


def test_the_verb(official: Path, tiny_dir: str, capfd: pytest.CaptureFixture[str]) -> None:
    questions = write_rows(official / "questions.json", ALPACA)
    words = ["eval", "alpaca_eval", "--model", tiny_dir, "--name=mine", "--use_cpu", "--max_new_tokens=8",
             f"--questions={questions}", f"--output_dir={official / 'run'}", "--judge_urls=[http://judge/v1]",
             "--judge_api_key_env=MY_KEY", f"--baseline_answers={official / 'base.json'}",
             f"--df_gamed={official / 'df_gamed.csv'}"]  # fmt: skip
    assert main(words) == 0, capfd.readouterr().err
    result = read_result(official / "run" / ANNOTATOR)
    assert result.metrics["lc_win_rate"].value == 61.5 and result.metrics["tokens"].value == 8
    assert result.settings["answers"]["temperature"] == 0.9
    assert "4 questions were asked; the benchmark has 805" in result.warnings
    assert "secret-1" not in (official / "run" / ANNOTATOR / "results.json").read_text()


def test_other_raw_numbers_than_the_package_are_an_error(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RATE", "71")
    with pytest.raises(DataError, match=r"give a win rate of 70.00, alpaca_eval says 71.00"):
        judge_alpaca_eval(settings_of(official))


@pytest.mark.parametrize(
    "setting, file", [("df_gamed", "df_gamed.csv"), ("baseline_answers", "alpaca_eval_gpt4_baseline.json")]
)
def test_files_of_the_hub_that_cannot_be_had_are_named(official: Path, setting: str, file: str) -> None:
    """And how to provide them; nothing was judged before."""
    with pytest.raises(EngineError) as error:
        judge_alpaca_eval(settings_of(official, **{setting: None}))
    for words in (f"hf download tatsu-lab/alpaca_eval {file} --repo-type dataset", f"{setting}: {file}"):
        assert words in str(error.value)
    assert not (official / "out/seen.json").exists()


def test_the_package_is_missing_or_fails(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RATE", "many")
    with pytest.raises(EngineError, match=r"the package failed: ValueError: .*many.*; all of it: .*alpaca_eval.log"):
        judge_alpaca_eval(settings_of(official))
    (official / "site/alpaca_eval/__init__.py").write_text("raise ImportError('no pandas here')")
    with pytest.raises(
        EngineError, match=r"cannot be imported by .*: no pandas here; .*pip install 'simpo\[alpaca-eval\]'"
    ):
        judge_alpaca_eval(settings_of(official))
    with pytest.raises(ConfigError, match="python: there is no file /none"):
        settings_of(official, python="/none")
    two = JudgeServer(base_urls=("http://a/v1", "http://b/v1"))
    with pytest.raises(ConfigError, match="alpaca_eval asks one address"):
        settings_of(official, server=two, python=sys.executable)
