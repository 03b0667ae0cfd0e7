"""The runs that are spoilt on purpose for docs/diagnosis.md: their data, and the pictures of their logs."""

import json

import pytest
from datasets import Dataset, DatasetDict

from benchmarks import diagnosis
from simpo.analysis.report.run_files import read_run


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def pairs() -> DatasetDict:
    rows = [
        {"prompt": [{"role": "user", "content": f"Q{at}"}], "chosen": answer(f"good {at}"), "rejected": answer("bad")}
        for at in range(40)
    ]
    return DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:8]))


def test_half_of_the_labels_are_swapped(pairs) -> None:
    found = diagnosis.shuffled(pairs)
    swapped = sum(row["chosen"] == answer("bad") for row in found["train"])
    assert 10 <= swapped <= 30
    for row, was in zip(found["train"], pairs["train"], strict=True):
        assert sorted([row["chosen"], row["rejected"]], key=str) == sorted([was["chosen"], was["rejected"]], key=str)
    assert found["test"].num_rows == 8


def test_rejected_answers_are_given_away(pairs) -> None:
    found = diagnosis.given_away(pairs)
    assert all(row["rejected"] == answer("bad I do not know.") for split in found.values() for row in split)
    assert found["train"]["chosen"] == pairs["train"]["chosen"]


def test_only_chosen_answers_of_the_training_set_run_on_without_an_end(pairs, tiny_dir, monkeypatch) -> None:
    monkeypatch.setattr(diagnosis, "MODEL", tiny_dir)
    found = diagnosis.running_on(pairs)
    first, second = found["test"][0], found["test"][1]
    assert found["train"]["chosen_ids"][0] == first["chosen_ids"][:-1] + second["chosen_ids"][:-1]
    assert found["train"]["rejected_ids"][0] == first["rejected_ids"]
    assert first["rejected_ids"][-1] == first["chosen_ids"][-1]  # the end


def test_every_picture_is_drawn(tmp_path, capsys) -> None:
    for name in diagnosis.RUNS:
        folder = tmp_path / name
        (folder / "monitor").mkdir(parents=True)
        keys = (*diagnosis._SHOWN, "monitor/logps/chosen")
        lines = [{"step": step, **dict.fromkeys(keys, step / 10 + len(name) / 100)} for step in range(5)]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    raised = {"name": "repeats", "level": "warn", "step": 3}
    (tmp_path / "rate-5x" / "monitor" / "warnings.jsonl").write_text(json.dumps(raised) + "\n")
    found = {name: read_run(tmp_path / name) for name in diagnosis.RUNS}
    diagnosis.draw(found, tmp_path / "images")
    files = {path.stem: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    assert set(files) == set(diagnosis.PICTURES) and len(set(files.values())) == len(files)
    assert all(10_000 < len(data) < 150_000 for data in files.values())
    diagnosis.print_numbers(found)
    printed = capsys.readouterr().out
    assert "monitor/entropy: 0.07 to 0.47, at most 0.47" in printed.split("rate-5x")[0]
    assert "repeats: warn at step 3" in printed.split("rate-100x")[0].split("rate-5x")[1]


def test_without_the_demo_it_says_what_to_run(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(diagnosis, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert diagnosis.main([]) == 2 and "make demo" in capsys.readouterr().err
