"""`simpo binarize`: folders in, a data set out that trains as it is; every prompt accounted for."""

import errno
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import load_from_disk
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simpo.cli import main
from simpo.errors import ConfigError, DataError
from simpo.onpolicy.binarize import BinarizeSettings, make_rows, run_binarize, split_rows
from simpo.onpolicy.scored import ScoredPrompt
from simpo.store import Store
from tests.onpolicy.made import generation, scored, store_in

WORDS = ["one", "two words", "three more words", "and four more words", "five"]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    return store_in(tmp_path)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def folders(store: Any, size: int = 20, order: int = 0) -> dict[str, str]:
    rng = random.Random(7)
    made = [generation(row, [f"{word} {row}" for word in WORDS]) for row in range(size)]
    scores = [scored(one, rm=[rng.random() for _ in WORDS], other=[1, 2, 3, 4, 5]) for one in made]
    shuffled = random.Random(order)
    shuffled.shuffle(made)
    shuffled.shuffle(scores)
    return {"generations": store(f"gen{order}", made), "scores": store(f"scores{order}", scores)}


def test_the_data_set_and_its_card(store, tmp_path, capsys) -> None:
    where = folders(store)
    options = [f"--{key}={value}" for key, value in where.items()]
    out = tmp_path / "pairs"
    assert main(["binarize", *options, f"--output_dir={out}", "--annotator=rm", "--test_size=0.2"]) == 0
    data = load_from_disk(str(out))
    assert {name: len(part) for name, part in data.items()} == {"train": 16, "test": 4}
    row = data["train"][0]
    assert row["prompt"] == [{"role": "user", "content": f"Question {row['source_row']}?"}]
    scores = {entry["annotator"]: entry["scores"] for entry in row["scores"]}
    assert row["chosen"][0]["content"] == row["responses"][row["chosen_index"]]
    assert row["chosen_score"] == max(scores["rm"]) and row["rejected_score"] == min(scores["rm"])
    assert row["margin"] == pytest.approx(max(scores["rm"]) - min(scores["rm"]))
    assert scores["other"] == [1, 2, 3, 4, 5] and row["seeds"] == [0, 1, 2, 3, 4] and row["annotator"] == "rm"
    card = (out / "README.md").read_text()
    assert "| prompts read | 20 |" in card and "| pairs in split test | 4 |" in card and "![Histograms" in card
    assert (out / "histograms.png").stat().st_size > 5000
    assert json.loads((out / "binarize.json").read_text())["report"]["kept"] == 20
    assert "20 of 20 prompts gave 20 pairs by rm (train 16, test 4)" in capsys.readouterr().out
    assert main(["binarize", *options, f"--output_dir={out}", "--annotator=rm"]) == 2
    assert main(["binarize", *options, f"--output_dir={out}", "--annotator=rm", "--overwrite"]) == 0
    assert set(load_from_disk(str(out))) == {"train"}


def test_it_trains_as_it_is(store, tmp_path, tiny_dir, capsys) -> None:
    out = tmp_path / "pairs"
    run_binarize(BinarizeSettings(**folders(store), output_dir=str(out), annotator="rm", test_size=4))
    words = f"""--model_name_or_path={tiny_dir} --output_dir={tmp_path / "run"} --total_train_batch_size=8
        --use_cpu=true --bf16=false --max_length=256 --max_prompt_length=128 --learning_rate=1e-6""".split()
    config = tmp_path / "run.yaml"
    config.write_text(f"dataset_mixer: {{{out}: 1.0}}\n")
    assert main(["train", str(config), *words, "--dry-run"]) == 0
    assert "16 to train, evaluation: eval 4" in capsys.readouterr().out


def test_tools_of_some_prompts_are_kept_in_both_splits(store, tmp_path) -> None:
    """`Dataset.from_list` knows the columns of its first row only."""
    tool = [{"type": "function", "function": {"name": "look_up"}}]
    made = [generation(row, ["a b", "c"], **({"tools": tool} if row % 5 == 4 else {})) for row in range(20)]
    where = {"generations": store("g", made), "scores": store("s", [scored(one, rm=[1.0, 0.0]) for one in made])}
    run_binarize(BinarizeSettings(**where, output_dir=str(tmp_path / "p"), test_size=3))
    data = load_from_disk(str(tmp_path / "p"))
    assert data["train"].features == data["test"].features
    rows = [row for part in data.values() for row in part]
    assert {row["source_row"] for row in rows if row["tools"] == json.dumps(tool)} == {4, 9, 14, 19}
    assert sum(row["tools"] is None for row in rows) == 16


def test_card_and_manifest_say_which_policy_and_which_annotator(tmp_path) -> None:
    made = [generation(row, ["a b", "c"]) for row in range(3)]
    for name, kept, identity in (
        ("g", made, {"model_name_or_path": "org/policy", "temperature": 0.8}),
        ("s", [scored(one, rm=[1.0, 0.0]) for one in made], {"generations": {}, "annotator rm": {"model": "org/rm|1"}}),
    ):
        with Store(tmp_path / name, identity) as folder:
            for record in kept:
                folder.append(record["id"], record)
    run_binarize(BinarizeSettings(str(tmp_path / "g"), str(tmp_path / "s"), str(tmp_path / "p")))
    card = (tmp_path / "p" / "README.md").read_text()
    assert "## Responses made with\n\n| setting | value |\n| --- | --- |\n| model_name_or_path | org/policy |" in card
    assert "org/rm\\|1" in card and "| generations | {} |" not in card
    manifest = json.loads((tmp_path / "p" / "binarize.json").read_text())
    assert manifest["responses"]["temperature"] == 0.8 and manifest["scores"] == {"annotator rm": {"model": "org/rm|1"}}


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(store, tmp_path, monkeypatch, capsys) -> None:
    words = ["binarize", *(f"--{key}={value}" for key, value in folders(store).items())]
    words += [f"--output_dir={tmp_path}/p", "--annotator=rm"]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(datasets.DatasetDict, "save_to_disk", full)
        assert main(words) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/p: No space left on device; responses and scores stay, give the same command again\n"
    )
    assert main(words) == 0


def test_a_second_process_is_refused(store, tmp_path) -> None:
    settings = BinarizeSettings(**folders(store), output_dir=str(tmp_path / "new" / "p"), annotator="rm")
    (tmp_path / "new").mkdir()
    with FileLock(tmp_path / "new" / ".p.lock"), pytest.raises(ConfigError, match=r"another process writes .*p; wait"):
        run_binarize(settings)
    assert not (tmp_path / "new" / "p").exists()
    run_binarize(settings)


def test_chosen_responses_that_were_cut_are_counted(store, tmp_path, capsys) -> None:
    made = [generation(0, ["a b c…", "c"]), generation(1, ["a b", "c…"])]
    where = {"generations": store("g", made), "scores": store("s", [scored(one, rm=[1.0, 0.0]) for one in made])}
    run_binarize(BinarizeSettings(**where, output_dir=str(tmp_path / "p")))
    assert "1 of 2 pairs: the chosen response was cut" in capsys.readouterr().out


def test_a_share_that_holds_out_nothing_is_said(store, tmp_path, capsys) -> None:
    run_binarize(BinarizeSettings(**folders(store), output_dir=str(tmp_path / "p"), annotator="rm", test_size=0.02))
    assert "no split test: test_size 0.02 of 20 prompts" in capsys.readouterr().out


def test_the_order_of_the_records_makes_no_difference(store, tmp_path) -> None:
    for order in (0, 1):
        where = folders(store, order=order)
        run_binarize(BinarizeSettings(**where, output_dir=str(tmp_path / f"out{order}"), annotator="rm", test_size=5))
    one, other = (load_from_disk(str(tmp_path / f"out{order}")) for order in (0, 1))
    assert {name: part.to_list() for name, part in one.items()} == {
        name: part.to_list() for name, part in other.items()
    }


def test_every_cause_is_counted(store, tmp_path) -> None:
    made = [
        generation(0, ["a", "b"]),
        generation(1, ["a", "a "]),
        generation(2, ["a", "b"]),
        generation(3, ["a", ""]),
        generation(4, ["a", "cut…"]),
        generation(5, ["a", "b"]),
        generation(6, ["a", "b"]),
        generation(7, [], error="the prompt is longer than the context"),
        generation(8, ["a", "b"]),
        generation(9, ["a", "b"], prompt=[{"role": "assistant", "content": "I begin"}]),
    ]
    scores = [scored(one, rm=[1.0, 0.0]) for one in (made[0], made[1], made[3], made[4], made[9])]
    scores += [scored(made[2], rm=[1.0, 1.0]), scored(made[5], rm=[None, None]), scored(made[8], rm=[0.1, 0.0])]
    settings_ = BinarizeSettings(store("g", made), store("s", scores), "out", min_margin=0.5, drop_cut_off=True)
    from simpo.onpolicy.scored import read_scored

    rows, report = make_rows(read_scored(settings_.generations, settings_.scores), settings_)
    assert [row["prompt_id"] for row in rows] == ["p0"]
    assert report.dropped == {
        "all responses identical": 1, "all scores equal": 1, "fewer than two usable responses": 2,
        "no score of this annotator": 1, "not annotated yet": 1, "generation or annotation failed": 1,
        "margin below min_margin": 1, "roles out of order": 1,
    }  # fmt: skip
    assert report.left_out == {"empty": 1, "cut off by the length limit": 1}
    assert report.total == report.kept + sum(report.dropped.values()) == 10
    assert "all scores equal; use an annotator" in "\n".join(report.lines())


@given(
    prompts=st.lists(
        st.lists(st.tuples(st.sampled_from("ab c"), st.sampled_from([None, 0.0, 1.0, float("nan")])), max_size=4),
        min_size=1, max_size=12,
    ),
    same=st.integers(1, 6), count=st.integers(1, 3), seed=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_counts_add_up_and_splits_are_disjoint(prompts: Any, same: int, count: int, seed: int) -> None:
    made = []
    for row, responses in enumerate(prompts):
        scores = [None if score != score else score for _, score in responses]
        record = generation(row, [text for text, _ in responses])
        question = [{"role": "user", "content": f"Question {row % same}?"}]
        made.append(ScoredPrompt(f"p{row}", row, question, record["responses"], {"rm": scores}, None, True, {}))
    options = BinarizeSettings("g", "s", "o", pairs="top_k", pairs_per_prompt=count, seed=seed)
    rows, report = make_rows(made, options)
    assert report.total == len(prompts) == report.kept + sum(report.dropped.values())
    assert report.pairs == len(rows) >= report.kept and report.kept == len({row["prompt_id"] for row in rows})
    assert all(row["chosen_score"] > row["rejected_score"] and row["chosen"] != row["rejected"] for row in rows)
    questions = {row["prompt"][0]["content"] for row in rows}
    if len(questions) > 1:
        splits = split_rows(rows, 0.5, seed)
        sides = {name: {row["prompt"][0]["content"] for row in part} for name, part in splits.items()}
        assert not sides["train"] & sides.get("test", set()) and set.union(*sides.values()) == questions
        assert Counter(map(str, rows)) == Counter(str(row) for part in splits.values() for row in part)


def test_texts_make_texts(store, tmp_path) -> None:
    made = [generation(row, ["yes", "no"], prompt=f"Q{row}: ") for row in range(3)]
    where = {"generations": store("g", made), "scores": store("s", [scored(one, rm=[1, 0]) for one in made[:2]])}
    run_binarize(BinarizeSettings(**where, output_dir=str(tmp_path / "out")))
    report = json.loads((tmp_path / "out" / "binarize.json").read_text())["report"]
    assert report["kept"] == 2 and report["dropped"] == {"not annotated yet": 1}
    assert "| not annotated yet | 1 | run simpo annotate to its end |" in (tmp_path / "out" / "README.md").read_text()
    row = load_from_disk(str(tmp_path / "out"))["train"][0]
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("Q0: ", "yes", "no")


def test_lengths_that_a_server_did_not_say(store, tmp_path) -> None:
    made = [generation(row, ["yes", "no"]) for row in range(3)]
    for one in made:
        one["responses"][0]["tokens"] = -1
    where = {"generations": store("g", made), "scores": store("s", [scored(one, rm=[1, 0]) for one in made])}
    run_binarize(BinarizeSettings(**where, output_dir=str(tmp_path / "out")))
    assert load_from_disk(str(tmp_path / "out"))["train"]["chosen_tokens"] == [None] * 3
    with pytest.raises(DataError, match=r"lengths of the responses to p0 \(row 0\) are not known"):
        run_binarize(BinarizeSettings(**where, output_dir=str(tmp_path / "other"), max_length_ratio=1.5))


def test_folders_that_do_not_belong_together(store, tmp_path) -> None:
    made, others = generation(0, ["a", "b"]), generation(0, ["a", "c"])
    with pytest.raises(DataError, match="belong to other responses"):
        run_binarize(
            BinarizeSettings(store("g", [made]), store("s", [scored(others, rm=[1, 0])]), str(tmp_path / "out"))
        )
    with pytest.raises(DataError, match="1 prompts that are not in"):
        run_binarize(
            BinarizeSettings(
                store("g2", [generation(1, ["a", "b"])]), store("s2", [scored(made, rm=[1, 0])]), str(tmp_path / "o")
            )
        )


def test_which_annotator(store) -> None:
    where = folders(store)
    with pytest.raises(DataError, match="annotators: rm, other; say which"):
        run_binarize(BinarizeSettings(**where, output_dir="out"))
    with pytest.raises(DataError, match="no scores of annotator 'armo'"):
        run_binarize(BinarizeSettings(**where, output_dir="out", annotator="armo"))


def test_nothing_left_says_why(store, tmp_path) -> None:
    made = generation(0, ["a", "b"])
    where = {"generations": store("g", [made]), "scores": store("s", [scored(made, rm=[1, 1])])}
    with pytest.raises(DataError, match=r"no pair is left\n.*\n.*all scores equal"):
        run_binarize(BinarizeSettings(**where, output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pair: best_worst", r"c.yaml:3: unknown setting 'pair'; did you mean 'pairs'\?"),
        ("pairs: best", "c.yaml:3: pairs: best is unknown: write one of best_worst, best_random, top_k"),
        ("min_margin: wide", "c.yaml:3: min_margin: wide has the wrong type: write a number"),
        ("min_margin: -1", "c.yaml:3: min_margin: -1.0 must be 0 or more"),
        ("pairs_per_prompt: 3", "c.yaml:3: pairs_per_prompt: 3 needs pairs: top_k"),
        ("test_size: 1.5", "c.yaml:3: test_size: 1.5 must be a fraction below 1, or a count"),
        ("max_length_ratio: 0.5", "c.yaml:3: max_length_ratio: 0.5 must be 1 or more"),
    ],
)
def test_settings_say_where_they_are_wrong(tmp_path: Path, line: str, message: str) -> None:
    from simpo.settings.flat import read_flat

    config = tmp_path / "c.yaml"
    config.write_text(f"generations: g\nscores: s\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        read_flat(BinarizeSettings, [config], ["--output_dir=o"])


def test_what_is_missing_is_named() -> None:
    from simpo.settings.flat import read_flat

    with pytest.raises(ConfigError, match="command line: generations is missing"):
        read_flat(BinarizeSettings, [], ["--scores=s", "--output_dir=o"])
