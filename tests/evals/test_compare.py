"""Results beside published rows: what is read, where a number stands, what is noted, what is written."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from simpo import cli
from simpo.errors import ConfigError, DataError
from simpo.evals.results import Metric, Result, write_result
from simpo.evals.tables.compare import Comparison, compare, find_results
from simpo.evals.tables.plots import draw_comparison, plot_columns
from simpo.evals.tables.published import JUDGES, TWINS_NOTE, choose_published, read_published, setting_names
from simpo.evals.tables.terminal import column_groups, comparison_csv, markdown, print_comparison, show_number

ROOT = Path(__file__).resolve().parents[2]
FACTS = ROOT.parent / "shared" / "facts" / "published_results.csv"
ALPACA = {"lc_win_rate": Metric(43.94, "%", 42.5, 45.3, 0.7), "win_rate": Metric(40.2, "%"),
          "length": Metric(1823.4, "characters")}  # fmt: skip


def alpaca(model: str = "mine", **changes: Any) -> Result:
    settings = {"judge": JUDGES["alpaca_eval"], "settings": {"temperature": 0.9, "model_revision": model}} | changes
    return Result("alpaca_eval", model, ALPACA, **settings)


def compared(folder: Path, *results: Result, setting: str | None = None, amount: str = "") -> Comparison:
    for number, result in enumerate(results):
        write_result(folder / f"r{number}", result)
    return compare(find_results([folder]), choose_published(setting, amount or ("all" if setting else "none")))


def printed(comparison: Comparison, width: int) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"), highlight=False, markup=False)  # noqa: SIM115
    print_comparison(comparison, console)
    return console.export_text()


def marks(comparison: Comparison, benchmark: str = "alpaca_eval") -> dict[str, list[str]]:
    """Row -> the notes on its numbers of a benchmark."""
    return {
        row.label: [comparison.notes[mark - 1] for mark in cell.marks]
        for row in comparison.rows
        for key, cell in row.cells.items()
        if key[0] == benchmark
    }


# The published rows


@pytest.mark.skipif(not FACTS.exists(), reason="the facts lie beside the project, in ../shared, and are not there")
def test_the_shipped_numbers_are_the_given_ones() -> None:
    assert (ROOT / "simpo" / "evals" / "tables" / "published_results.csv").read_bytes() == FACTS.read_bytes()


def test_the_published_numbers() -> None:
    rows = {(row.setting, row.objective): row.metrics for row in read_published()}
    assert len(rows) == 52 and len(setting_names()) == 6
    simpo = rows["Llama3 Instruct 8B", "SimPO"]
    assert simpo["alpaca_eval"] == {"lc_win_rate": Metric(44.7, "%"), "win_rate": Metric(40.5, "%")}
    assert simpo["arena_hard"] == {"win_rate": Metric(33.8, "%")}
    assert rows["Llama3 Instruct 8B", "CPO"] == rows["Llama3 Instruct 8B", "KTO"]  # as in the source


def test_the_twins_are_named_where_they_are_shown(tmp_path: Path) -> None:
    assert TWINS_NOTE in compared(tmp_path, alpaca(), setting="llama3 instruct 8b").remarks
    assert TWINS_NOTE in compared(tmp_path, alpaca(), amount="all").remarks
    assert TWINS_NOTE not in compared(tmp_path, alpaca(), setting="Llama3 Base 8B").remarks
    assert TWINS_NOTE not in compared(tmp_path, alpaca()).remarks


def test_which_published_rows() -> None:
    assert [row.objective for row in choose_published("gemma-2-9b-it")] == ["SFT", "DPO", "SimPO"]
    assert {row.objective for row in choose_published(None)} == {"SFT", "SimPO"}
    assert len(choose_published(None, "all")) == 52 and choose_published(None, "none") == []
    with pytest.raises(ConfigError, match=r"--setting Llama3: .*one of gemma-2-9b-it, .*Llama3 Instruct 8B"):
        choose_published("Llama3")


# Reading


def test_folders_are_searched_and_files_are_read_once(tmp_path: Path) -> None:
    one = write_result(tmp_path / "a" / "alpaca_eval", alpaca("one"))
    write_result(tmp_path / "a" / "deep" / "er", alpaca("two"))
    found = find_results([tmp_path / "a", one, one.parent])
    assert [entry.result.model for entry in found] == ["one", "two"]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no results\.json"):
        find_results([tmp_path])
    with pytest.raises(DataError, match="no such file"):
        find_results([tmp_path / "absent"])


# Rows, columns, notes


def test_rows_and_columns(tmp_path: Path) -> None:
    arena = Result("arena_hard", "mine", {"length": Metric(511, "tokens"), "win_rate": Metric(33.0, "%")}, "gpt")
    own = Result("own_benchmark", "mine", {"score": Metric(1.0)})
    table = compared(tmp_path, own, arena, alpaca(), alpaca("other"), amount="brief")
    assert [(column.benchmark, column.metric) for column in table.columns] == [
        ("alpaca_eval", "lc_win_rate"), ("alpaca_eval", "win_rate"), ("alpaca_eval", "length"),
        ("arena_hard", "win_rate"), ("arena_hard", "length"), ("own_benchmark", "score"),
    ]  # fmt: skip
    assert [row.label for row in table.rows[:3]] == ["mine", "other", "SFT, gemma-2-9b-it"]
    assert len(table.rows[0].cells) == 6 and len(table.rows[1].cells) == 3


def test_published_rows_are_for_benchmarks_that_were_run(tmp_path: Path) -> None:
    pairs = Result("pairs", "mine", {"reward_accuracy": Metric(60.0, "%")})
    table = compared(tmp_path / "pairs", pairs, amount="all")
    assert [row.label for row in table.rows] == ["mine"] and table.remarks == []
    arena = Result("arena_hard", "mine", {"win_rate": Metric(33.0, "%")}, JUDGES["arena_hard"])
    table = compared(tmp_path / "arena", pairs, arena, amount="all")
    assert len(table.rows) == 53 and {column.benchmark for column in table.columns} == {"pairs", "arena_hard"}


def test_alike_results_need_no_note(tmp_path: Path) -> None:
    table = compared(tmp_path, alpaca("one"), alpaca("two"), amount="brief")
    assert table.notes == [] and set(map(tuple, marks(table).values())) == {()}


def test_another_judge_is_noted_at_every_number(tmp_path: Path) -> None:
    table = compared(tmp_path, alpaca("one"), alpaca("two", judge="gpt-4.1"), setting="gemma-2-9b-it")
    official = JUDGES["alpaca_eval"]
    found = marks(table)
    assert found["one"] == [f"alpaca_eval: judge {official}"]
    assert found["two"] == ["alpaca_eval: judge gpt-4.1"]
    assert found["SFT, gemma-2-9b-it"] == [f"alpaca_eval: published, judge {official}"]
    assert all(cell.marks for row in table.rows[:2] for cell in row.cells.values())
    assert "43.9 (1)" in printed(table, 80) and "(2) alpaca_eval: judge gpt-4.1" in printed(table, 80)


def test_one_result_of_another_judge_than_the_published_one(tmp_path: Path) -> None:
    found = marks(compared(tmp_path, alpaca("one", judge=None), setting="gemma-2-9b-it"))
    assert found["one"] == ["alpaca_eval: no judge"] and "published, judge" in found["DPO, gemma-2-9b-it"][0]


def test_another_setting_is_noted(tmp_path: Path) -> None:
    table = compared(tmp_path, alpaca("one"), alpaca("two", settings={"temperature": 0.7, "top_p": 1.0}))
    judge = JUDGES["alpaca_eval"]
    assert marks(table) == {
        "one": [f"alpaca_eval: judge {judge}, temperature 0.9, top_p not said"],
        "two": [f"alpaca_eval: judge {judge}, temperature 0.7, top_p 1.0"],
    }


def test_settings_within_settings(tmp_path: Path) -> None:
    """How answers came to be is one of the settings; what differs by nature needs no note."""
    one = {"answers": {"temperature": 0.9, "model_name_or_path": "a", "tokenizer_hash": "x", "stop_ids": [1]}}
    two = {"answers": {"temperature": 0.7, "model_name_or_path": "b", "tokenizer_hash": "y", "stop_ids": [2]}}
    found = marks(compared(tmp_path, alpaca("one", settings=one), alpaca("two", settings=two)))
    judge = JUDGES["alpaca_eval"]
    assert found["one"] == [f"alpaca_eval: judge {judge}, answers.temperature 0.9"]
    assert found["two"] == [f"alpaca_eval: judge {judge}, answers.temperature 0.7"]
    assert marks(compared(tmp_path / "alike", alpaca("one", settings=one), alpaca("two", settings=one)))["one"] == []


def test_lesser_metrics_are_in_the_csv_only(tmp_path: Path) -> None:
    more = Result("alpaca_eval", "mine", {**ALPACA, "discrete_win_rate": Metric(41.0, "%")})
    table = compared(tmp_path, more)
    assert "discrete" not in markdown(table) and "discrete_win_rate" in comparison_csv(table)


def test_the_same_model_twice(tmp_path: Path) -> None:
    table = compared(tmp_path, alpaca(), alpaca(settings={"temperature": 0.5}))
    assert [row.label for row in table.rows] == ["mine", "mine (2)"]
    assert "temperature 0.5" in marks(table)["mine (2)"][0]


def test_warnings_stand_at_their_numbers(tmp_path: Path) -> None:
    found = marks(compared(tmp_path, alpaca("one", warnings=["3 verdicts are missing"]), alpaca("two")))
    assert found == {"one": ["alpaca_eval: 3 verdicts are missing"], "two": []}


# What is shown and written


@pytest.mark.parametrize(
    ("number", "shown"),
    [((43.94, "%"), "43.9"), ((7.914, "points"), "7.91"), ((1823.4, "characters"), "1,823"), ((-0.1234, ""), "-0.123"),
     ((1.23456, "nats/token"), "1.235")],
)  # fmt: skip
def test_decimals(number: tuple[float, str], shown: str) -> None:
    assert show_number(*number) == shown


def everything(folder: Path) -> Comparison:
    six = {name: Metric(60.0 + at, "%", 59.0 + at, 61.0 + at) for at, name in enumerate(
        ("mmlu", "arc_challenge", "hellaswag", "truthfulqa_mc2", "winogrande", "gsm8k", "average"))}  # fmt: skip
    downstream = Result("downstream", "outputs/a-model-with-a-very-long-name-that-ends-in-simpo", six)
    return compared(folder, alpaca(), downstream, setting="Llama3 Instruct 8B")


@pytest.mark.parametrize("width", [60, 80, 100, 200, 300])
def test_the_table_fits(tmp_path: Path, width: int) -> None:
    table = everything(tmp_path)
    groups = list(column_groups(table, width))
    assert [column for group in groups for column in group] == table.columns
    assert (len(groups) == 1) == (width >= 200)
    text = printed(table, width)
    assert max(map(len, text.splitlines())) <= width
    for number in ("43.9", "[42.5, 45.3]", "1,823", "44.7", "66.0", "[65.0, 67.0]"):
        assert number in text
    assert all(line.startswith(" …") for line in text.splitlines() if "…" in line)  # only names are cut


def test_markdown(tmp_path: Path) -> None:
    text = markdown(compared(tmp_path, alpaca("a|b"), setting="gemma-2-9b-it"))
    lines = text.splitlines()
    assert lines[2] == "| model | AlpacaEval 2: LC win rate, % | AlpacaEval 2: win rate, % | " \
        "AlpacaEval 2: length, characters |"  # fmt: skip
    assert lines[4] == "| **a\\|b** | 43.9 [42.5, 45.3] | 40.2 | 1,823 |"
    assert lines[7] == "| *SimPO, gemma-2-9b-it (published)* | 72.4 | 65.9 |  |"
    assert "published: README of princeton-nlp/SimPO" in text


def test_csv(tmp_path: Path) -> None:
    table = compared(tmp_path, alpaca(warnings=["careful"]), setting="gemma-2-9b-it")
    rows = list(csv.DictReader(comparison_csv(table).splitlines()))
    assert len(rows) == 3 + 3 * 2
    assert rows[0] == {
        "row": "mine", "published": "false", "benchmark": "alpaca_eval", "metric": "lc_win_rate", "value": "43.94",
        "low": "42.5", "high": "45.3", "stderr": "0.7", "unit": "%", "judge": JUDGES["alpaca_eval"],
        "source": str(tmp_path / "r0" / "results.json"), "notes": "alpaca_eval: careful",
    }  # fmt: skip
    assert rows[-1]["source"] == "princeton-nlp/gemma-2-9b-it-SimPO" and rows[-1]["low"] == ""


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = everything(tmp_path)
    assert "length" not in {column.metric for column in plot_columns(table)}
    assert draw_comparison(table, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    lengths = Result("alpaca_eval", "mine", {"length": Metric(1.0)})
    assert not draw_comparison(compared(tmp_path / "none", lengths), tmp_path / "none.png")


# The command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_result(tmp_path / "r", alpaca())
    assert cli.main(["compare", str(tmp_path / "r"), "--setting=gemma-2-9b-it", "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.csv", "compare.md", "compare.png"]
    assert "43.9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--setting=Llama"], "--setting Llama: is no published setting; write one of gemma-2-9b-it"),
        (["--beta=2"], "simpo compare has no setting --beta"),
        (["--out=@/results.json/x"], "cannot be written: Not a directory"),
    ],
)
def test_wrong_words(tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_result(tmp_path, alpaca())
    assert cli.main(["compare", str(tmp_path), *(word.replace("@", str(tmp_path)) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_colours_only_where_they_are_wanted(tmp_path: Path) -> None:
    """No torch either, and no escape sequences into a pipe or with NO_COLOR."""
    write_result(tmp_path, alpaca())
    code = "import sys; from simpo.cli import main; main(['compare', sys.argv[1]]); print('torch' in sys.modules)"
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "80"}
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=environment,
                            capture_output=True, text=True, check=True)  # fmt: skip
    assert "43.9" in answer.stdout and "\x1b" not in answer.stdout and answer.stdout.endswith("False\n")
