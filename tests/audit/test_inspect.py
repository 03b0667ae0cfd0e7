"""The command: what it prints, writes and returns; the same checks before a run."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from simpo import cli
from simpo.audit.findings import Finding
from simpo.audit.inspect import InspectOptions, inspect_run, stop_on
from simpo.audit.show import pair_text, show
from simpo.errors import DataError
from simpo.run import run_training
from simpo.settings import read_settings

from .conftest import good_rows, row

# Elements that have no end tag.
VOID = {"meta"}
LEVELS = ["error", "warning", "note"]


@pytest.fixture
def write(tmp_path):
    def write_rows(rows, name="train.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(entry) + "\n" for entry in rows))
        return str(tmp_path / name)

    return write_rows


@pytest.fixture
def config(tmp_path, tiny_dir, write):
    """config(train rows, evaluation rows, **settings) -> path of a settings file."""

    def make(rows, evaluation=None, **settings):
        values = {
            "model_name_or_path": tiny_dir,
            "dataset_mixer": {write(rows): 1.0},
            "output_dir": str(tmp_path / "out"),
            "total_train_batch_size": 8,
            "max_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
        }
        if evaluation is not None:
            values["eval_dataset_mixer"] = {write(evaluation, "eval.jsonl"): 1.0}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(values | settings))
        return str(path)

    return make


FAULTY = [*good_rows(20), row("What is this?", "That.<|start_header_id|>user", "This <b>&amp;</b> \x1b[31m that.")]
DOUBLE_BOS = [{"prompt_ids": [0, 0, 300 + n], "chosen_ids": [302, 4], "rejected_ids": [303, 4]} for n in range(20)]


def test_model_and_data_alone(tiny_dir, write, capsys):
    assert cli.main(["inspect", "--model", tiny_dir, "--data", write(good_rows(20))]) == 0
    printed = capsys.readouterr().out
    assert "0 errors, 0 warnings, 1 note" in printed and "What│ is│" in printed
    assert "20 of 20 rows, 20 distinct prompts" in printed and "\x1b" not in printed


def test_a_config_with_overrides(config, capsys):
    path = config(good_rows(20), good_rows(3))
    assert cli.main(["inspect", path, "--max_length=32", "--max_prompt_length=20", "--pairs=1"]) == 0
    printed = capsys.readouterr().out
    assert "max_length 32" in printed and "truncated (train)" in printed and "leakage (eval)" in printed
    assert printed.count(" tokens\nprompt\n") == 1


@pytest.mark.parametrize(
    ("rows", "words", "code"),
    [
        (good_rows(20), [], 0),
        (good_rows(20), ["--strict"], 0),
        (FAULTY, [], 0),
        (FAULTY, ["--strict"], 2),
        (DOUBLE_BOS, [], 2),
    ],
)
def test_exit_codes(tiny_dir, write, capsys, rows, words, code):
    assert cli.main(["inspect", "--model", tiny_dir, "--data", write(rows), *words]) == code
    error = capsys.readouterr().err.splitlines()[-1:] or [""]
    assert error[0].startswith("error: ") == bool(code)
    assert ("--strict" in error[0]) == ("--strict" in words and bool(code))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to inspect"),
        (["--model", "x"], "--data SOURCE"),
        (["none.yaml"], "none.yaml does not exist"),
        (["--model=tests/golden/tiny", "--data=none.jsonl"], "none.jsonl: no such file"),
        (["--model=tests/golden/tiny", "--data=x.jsonl", "--eval-prompts=gsm8k"], "name and a file"),
        (["--model=tests/golden/tiny", "--data=x.jsonl", "--eval-prompts=gsm8k=no.jsonl"], "no such file"),
        (["--model=tests/golden/tiny", "--data=x.jsonl", "--html=no/such/folder/x.html"], "there is no folder"),
        (["--model=tests/golden/tiny", "--data=x.jsonl", "--html=tests"], "is a folder; name a file"),
        (["--model=tests/golden/tiny", "--data=x.jsonl", "--sample=0"], "--sample 0"),
        (["--model=tests/golden/tiny", "--data=x.jsonl", "--bta=3"], "did you mean 'beta'"),
    ],
)
def test_errors_are_one_line(words, message, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert cli.main(["inspect", *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0]


@pytest.mark.parametrize(
    ("word", "message"),
    [("--rows=a", "write e.g. --rows 0,12"), ("--pairs=x", "whole number"), ("--sample=-1", "whole number")],
)
def test_numbers_that_are_none(word, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["inspect", "--model=x", "--data=x", word])
    assert message in capsys.readouterr().err


def test_rows_that_are_asked_for(tiny_dir, write, capsys):
    rows = [*good_rows(10), row("Empty?", "", "x"), row("Last?", "Yes.", "No.")]
    start = ["inspect", "--model", tiny_dir, "--data", write(rows)]
    assert cli.main([*start, "--rows=11,2"]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^row (\d+):", printed, re.MULTILINE) == ["11", "2"] and "Yes│.│<|eot_id|>" in printed
    assert cli.main([*start, "--rows", "10"]) == 2
    assert "row 10 of the training set is no pair" in capsys.readouterr().err


def test_weights_are_no_duplicates(config, capsys):
    rows = good_rows(20)
    path = config([*rows, rows[3]], test_size=0.1)
    name = next(iter(yaml.safe_load(Path(path).read_text())["dataset_mixer"]))
    assert cli.main(["inspect", path, f'--dataset_weights={{"{name}": 2.5}}', "--strict"]) == 2
    printed = capsys.readouterr().out
    assert "each seen 2.5 times an epoch" in printed and "held out" in printed
    repeats = re.search(r"duplicate_pairs \(train\): (\d+) of (\d+) pairs", " ".join(printed.split()))
    assert repeats and repeats[1] == "1"
    words = ["--strict", "--deduplicate=exact", f'--dataset_weights={{"{name}": 2.5}}']
    assert cli.main(["inspect", path, *words]) == 0
    printed = capsys.readouterr().out
    assert "duplicate_pairs" not in printed and "duplicate of an earlier row" in " ".join(printed.split())


def test_a_run_takes_weights_for_no_duplicates(config, capsys):
    path = config(good_rows(20))
    name = next(iter(yaml.safe_load(Path(path).read_text())["dataset_mixer"]))
    assert cli.main(["train", path, "--dry-run", f'--dataset_weights={{"{name}": 3}}']) == 0
    assert "! duplicate_pairs" not in capsys.readouterr().out


def test_rows_of_several_sources_are_named(config, write, capsys):
    second = write([row("Say it.", "It <|im_start|>", "This."), *good_rows(3)], "second.jsonl")
    assert cli.main(["inspect", config(good_rows(20)), f'--dataset_mixer={{"{second}": 1.0, "other": 1.0}}']) == 2
    first = write(good_rows(20), "first.jsonl")
    mixer = f'--dataset_mixer={{"{first}": 1.0, "{second}": 1.0}}'
    capsys.readouterr()
    assert cli.main(["inspect", config(good_rows(20)), mixer]) == 0
    printed = "".join(capsys.readouterr().out.split())
    assert f"(row20;20is{second}row0)" in printed


def test_eval_prompts(tiny_dir, write, tmp_path, capsys):
    (tmp_path / "set.txt").write_text("What is 3 plus 3?\nWhat is the meaning of all of this, then?\n")
    start = ["inspect", "--model", tiny_dir, "--data", write(good_rows(10))]
    assert cli.main([*start, "--eval-prompts", f"mine={tmp_path / 'set.txt'}"]) == 0
    assert "mine: 1 of 2 prompts (50 %)" in capsys.readouterr().out


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert tag not in ("script", "link", "iframe", "object", "img")
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data


def test_page(tiny_dir, write, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert cli.main(["inspect", "--model", tiny_dir, "--data", write(FAULTY), "--html", str(page), "--rows=20,0"]) == 0
    text = page.read_text(encoding="utf-8")
    parser = Page()
    parser.feed(text)
    assert parser.open == [] and parser.fetched == []
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert text.count("<svg") == 4 and 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert (
        "special_inside (train)" in parser.text
        and "&lt;|eot_id|&gt;" in text
        and "<b>" not in text.split("Pairs as tokens")[1]
    )
    assert 'class="special"' in text and "chosen longer" in parser.text and "\x1b" not in text


def test_json(config, tmp_path, capsys):
    path = tmp_path / "report.json"
    overlap = tmp_path / "set.txt"
    overlap.write_text("What is 3 plus 3?\n")
    words = ["--json", str(path), f"--eval-prompts=mine={overlap}"]
    assert cli.main(["inspect", config(FAULTY, good_rows(3)), *words]) == 0
    report = json.loads(path.read_text())
    assert set(report) == {"format", "about", "levels", "findings", "sets"} and report["format"] == 1
    assert list(report["levels"]) == LEVELS and set(report["sets"]) == {"train", "eval"}
    for finding in report["findings"]:
        names = {"level", "check", "dataset", "text", "todo", "count", "of", "rows", "detail", "origins"}
        assert set(finding) == names and finding["origins"] == []
        assert finding["level"] in LEVELS and all(isinstance(number, int) for number in finding["rows"])
    levels = [LEVELS.index(finding["level"]) for finding in report["findings"]]
    assert levels == sorted(levels)
    train = report["sets"]["train"]
    assert set(train) == {"counts", "statistics", "overlaps"}
    assert train["counts"]["pairs"] == 21 and train["counts"]["bos"] == {"0": 0, "1": 21, "2+": 0}
    assert train["counts"]["special_inside"] == 1 and train["counts"]["without_end"] == {"chosen": 0, "rejected": 0}
    numbers = train["statistics"]
    assert set(numbers) == {"pairs", "prompt", "chosen", "rejected", "bias", "epoch"}
    for side in ("prompt", "chosen", "rejected"):
        assert set(numbers[side]["percentiles"]) == {"5", "25", "50", "75", "95", "99"}
        assert sum(numbers[side]["histogram"]["counts"]) == 21
    totals = [numbers[side]["total"] for side in ("prompt", "chosen", "rejected")]
    assert numbers["epoch"]["shared"] == sum(totals) and numbers["epoch"]["packed"] == sum(totals) + totals[0]
    (found,) = train["overlaps"]
    assert (found["name"], found["found"], found["pairs"]) == ("mine", [0], [3])


@pytest.fixture
def inspection(config):
    return inspect_run(read_settings(config(FAULTY, good_rows(3))), InspectOptions(rows=(20,)))


def console(width=100, **given):
    return Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False, **given)


def test_colours(inspection):
    out = console(force_terminal=True, color_system="truecolor", no_color=False)
    show(inspection, out)
    printed = out.file.getvalue()
    assert "\x1b[32m" in printed and "\x1b[31m" in printed  # scored: green and red
    assert re.search(r"\x1b\[[\d;]*7[\d;]*m<\|eot_id\|>", printed)  # inverted
    assert "│" not in printed and "\x1b[31m that" not in printed.replace("␛[31m", "")


@pytest.mark.parametrize("given", [{}, {"force_terminal": True, "color_system": "truecolor", "no_color": True}])
def test_without_colours(inspection, given):
    out = console(**given)
    show(inspection, out)
    printed = out.file.getvalue()
    assert "\x1b" not in printed and "│" in printed and "<|eot_id|>" in printed and "␛" in printed


@pytest.mark.parametrize("width", [40, 60, 200])
def test_width(inspection, width):
    out = console(width)
    show(inspection, out)
    printed = out.file.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    bars = [line for line in printed.splitlines() if "▁" in line or "█" in line]
    assert len(bars) == 8 and all(re.search(r"\d [ ▁-█]{5,} [\d,]+\+?$", line) for line in bars)
    for words in ("chosen", "longest", "length_bias", "special_inside"):
        assert words in printed


def test_long_parts_are_shortened(config):
    rows = [row("word " * 500, "yes " * 500, "no"), *good_rows(3)]
    found = inspect_run(read_settings(config(rows, max_length=2048, max_prompt_length=1800)), InspectOptions(rows=(0,)))
    text = pair_text(found.samples["train"][0], plain=True).plain
    assert text.count(" tokens … ") == 2 and len(text) < 5000


def test_training_stops_at_errors(config, tmp_path):
    settings = read_settings(config(DOUBLE_BOS))
    with pytest.raises(
        DataError, match=r"bos_double \(train\): 20 of 20 pairs .* begin with two BOS tokens: write BOS once"
    ):
        run_training(settings)
    assert not (tmp_path / "out").exists()
    run_training(settings, audit=False)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_further_errors_are_told_with_their_set():
    found = [Finding("error", "end_missing", name, "no end", "raise max_length") for name in ("train", "eval")]
    with pytest.raises(
        DataError, match=r"^end_missing \(train\): no end: raise max_length; 1 more: end_missing \(eval\)$"
    ):
        stop_on(found, strict=False)


@pytest.mark.parametrize("dry_run", [True, False])
def test_training_prints_warnings(config, capsys, dry_run):
    run_training(read_settings(config(FAULTY)), dry_run=dry_run)
    printed = capsys.readouterr().out
    assert "! special_inside (train): 1 of 21 pairs" in printed and "note" not in printed


def test_no_audit(config, capsys, monkeypatch):
    assert cli.main(["train", config(DOUBLE_BOS), "--dry-run"]) == 2
    assert "bos_double" in capsys.readouterr().err
    assert cli.main(["train", config(DOUBLE_BOS), "--dry-run", "--no-audit"]) == 0
