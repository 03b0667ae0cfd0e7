"""Sources, splits, fractions, mixing and holding out; every unreadable source gives one clear error."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from simpo.data.config import DataConfig
from simpo.data.load import load_datasets
from simpo.data.sources import open_source
from simpo.data.tokenize import TokenizeOptions, tokenize_pairs
from simpo.errors import ConfigError, DataError

from .conftest import conversation, user

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def rows(count, name="a", prompts=None):
    return [conversation([user(f"{name} {i % (prompts or count)}")], f"yes {i}", f"no {i}") for i in range(count)]


def text_rows(count, name="t"):
    return [{"prompt": f"{name} {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(count)]


def write_lines(path, entries):
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write(text)
    else:
        path.write_text(text)
    return str(path)


def prompts_of(data):
    return [row["chosen"][0]["content"] for row in data]


# kinds of sources


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.jsonl.gz", "p.json.gz", "array.json", "p.parquet"])
def test_files(tmp_path, name):
    path = tmp_path / name
    if name == "p.parquet":
        Dataset.from_list(rows(5)).to_parquet(path)
    elif name == "array.json":
        path.write_text(json.dumps(rows(5), indent=1))
    else:
        write_lines(path, rows(5))
    train, evaluation = load_datasets(DataConfig({str(path): 1.0}))
    assert evaluation is None
    assert sorted(train.to_list(), key=str) == sorted(rows(5), key=str)


def test_csv_keeps_answers_that_look_like_nothing(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,chosen,rejected\nq,None,NA\nq2,a,b\n")
    train, _ = load_datasets(DataConfig({str(tmp_path / "p.csv"): 1.0}))
    assert {(row["chosen"], row["rejected"]) for row in train} == {("None", "NA"), ("a", "b")}


def test_saved_directories(tmp_path):
    both = DatasetDict({"train": Dataset.from_list(rows(4)), "test": Dataset.from_list(rows(2, "b"))})
    both.save_to_disk(tmp_path / "dict")
    both["train"].save_to_disk(tmp_path / "single")
    for split in both:
        both[split].save_to_disk(tmp_path / "apart" / split)
    (tmp_path / "plain").mkdir()
    write_lines(tmp_path / "plain" / "train.jsonl", rows(4))
    write_lines(tmp_path / "plain" / "test.jsonl", rows(2, "b"))
    for name, held in (("dict", 2), ("single", None), ("apart", 2), ("plain", 2)):
        train, evaluation = load_datasets(DataConfig({str(tmp_path / name): 1.0}))
        assert len(train) == 4, name
        assert (evaluation and len(evaluation)) == held, name


def test_other_columns_are_left_behind(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{**row, "score": 1, "prompt": "q"} for row in rows(3)])
    train, _ = load_datasets(DataConfig(dataset_name=path))
    assert set(train.column_names) == {"prompt", "chosen", "rejected"}


def test_tokenized_sources_pass(tmp_path):
    ids = {"prompt_ids": [[1, 2]], "chosen_ids": [[3]], "rejected_ids": [[4]]}
    Dataset.from_dict({**ids, "row": [0]}).save_to_disk(tmp_path / "ids")
    train, _ = load_datasets(DataConfig({str(tmp_path / "ids"): 1.0}))
    assert train.to_dict() == ids
    raw = write_lines(tmp_path / "p.jsonl", rows(2))
    with pytest.raises(DataError, match="cannot be mixed"):
        load_datasets(DataConfig({str(tmp_path / "ids"): 1.0, raw: 1.0}))


# what cannot be read


def broken(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


GOOD = "".join(json.dumps(row) + "\n" for row in rows(30))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.jsonl", GOOD + '{"chosen": [}\n' + GOOD, r"p\.jsonl:31: bad JSON at column 13"),
        ("p.jsonl", GOOD[:-20], r"p\.jsonl:30: bad JSON"),
        ("p.jsonl", GOOD + "3\n", r"p\.jsonl:31: holds a int"),
        ("p.json", "[" + ",\n".join(GOOD.splitlines()), r"p\.json:30: bad JSON"),
        ("p.json", "[]", "holds no rows"),
        ("p.json", json.dumps(["a", "b"]), "entry 0 is a str"),
        ("p.jsonl", "", "is empty"),
        ("p.jsonl", "\n\n", "holds no rows"),
        ("p.jsonl.gz", gzip.compress(GOOD.encode(), mtime=0)[:-40], "compressed file ends early, after line"),
        ("p.jsonl.gz", GOOD, "cannot be decompressed"),
        ("p.jsonl.gz", gzip.compress(b"", mtime=0), "holds no rows"),
        ("p.jsonl", GOOD.encode() + b'{"chosen": "\xff\xfe"}\n', r"p\.jsonl:31: is no UTF-8"),
        ("p.txt", GOOD, "unknown kind of file"),
        ("p.parquet", b"nothing of the kind", "cannot be read as parquet"),
        ("p.csv", "a,b\n1,2\n", "no column chosen"),
        ("p.jsonl", '{"prompt": "q", "chosen": "a"}\n', "no column rejected"),
        ("p.jsonl", '{"chosen": "a", "rejected": "b"}\n', "no text column prompt"),
    ],
)
def test_unreadable_files(tmp_path, capfd, name, content, message):
    path = broken(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as error:
        load_datasets(DataConfig({path: 1.0}))
    assert path in str(error.value) and "\n" not in str(error.value)
    assert "Failed to load" not in capfd.readouterr().err


@pytest.mark.parametrize("source", ["no/such/dir/p.jsonl", "missing.parquet", "./here", "/nowhere", "~/nowhere/at/all"])
def test_missing_paths(source):
    with pytest.raises(DataError, match="no such file or directory"):
        open_source(source)


def test_missing_hub_data_set():
    with pytest.raises(DataError, match=r"someone/nothing-of-this-name \(configuration 'c'\).*hub"):
        open_source("someone/nothing-of-this-name", "c")


def test_directory_without_data(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read as a data set.*save_to_disk"):
        open_source(str(tmp_path))


# splits


@pytest.fixture
def preferences(tmp_path):
    """A saved data set whose splits are named as in UltraFeedback."""
    parts = {"train_prefs": rows(10), "test_prefs": rows(4, "b"), "train_sft": rows(3, "c")}
    DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(tmp_path / "prefs")
    return str(tmp_path / "prefs")


def test_split_names_tell_their_purpose(preferences):
    train, evaluation = load_datasets(DataConfig({preferences: 1.0}, ["train_prefs", "test_prefs"]))
    assert len(train) == 10 and prompts_of(evaluation) == [f"b {i}" for i in range(4)]
    train, evaluation = load_datasets(DataConfig({preferences: 1.0}, ["train_prefs", "train_sft"]))
    assert len(train) == 13 and evaluation is None


def test_slices_of_splits(preferences):
    train, evaluation = load_datasets(DataConfig({preferences: 1.0}, ["train_prefs[:50%]", "test_prefs[1:3]"]))
    assert sorted(prompts_of(train)) == [f"a {i}" for i in range(5)]
    assert prompts_of(evaluation) == ["b 1", "b 2"]


def test_a_slice_behind_the_last_row(preferences):
    with pytest.raises(DataError, match=r"'train_prefs\[900:\]' begins behind the last row; train_prefs has \d+ rows"):
        load_datasets(DataConfig({preferences: 1.0}, ["train_prefs[900:]"]))


def test_missing_split_lists_those_there_are(preferences):
    for splits in (None, ["train", "test"], ["train_prefs", "test_sft"]):
        with pytest.raises(DataError, match=r"no split.*train_prefs, test_prefs, train_sft"):
            load_datasets(DataConfig({preferences: 1.0}, splits))


def test_split_without_a_purpose(preferences):
    with pytest.raises(ConfigError, match="'prefs' does not tell"):
        load_datasets(DataConfig({preferences: 1.0}, ["prefs"]))


def test_default_test_split_is_optional(tmp_path):
    DatasetDict({"train": Dataset.from_list(rows(10))}).save_to_disk(tmp_path / "d")
    train, evaluation = load_datasets(DataConfig({str(tmp_path / "d"): 1.0}, ["train", "test"], test_size=2))
    assert (len(train), len(evaluation)) == (8, 2)


def test_nothing_to_train_on(preferences):
    with pytest.raises(DataError, match="no training rows"):
        load_datasets(DataConfig({preferences: 1.0}, ["test_prefs"]))
    with pytest.raises(ConfigError, match="dataset_mixer"):
        load_datasets(DataConfig())


# mixing


def test_fractions_cut_training_only(preferences, tmp_path):
    path = write_lines(tmp_path / "p.jsonl", rows(8, "file"))
    settings = DataConfig({preferences: 0.5, path: 0.25}, ["train_prefs", "test_prefs"])
    train, evaluation = load_datasets(settings, seed=1)
    names = [text.split()[0] for text in prompts_of(train)]
    assert (names.count("a"), names.count("file"), len(evaluation)) == (5, 2, 4)
    assert load_datasets(settings, seed=1)[0].to_list() == train.to_list()
    assert load_datasets(settings, seed=2)[0].to_list() != train.to_list()


def test_fraction_is_a_random_draw_of_at_least_one(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", rows(40))
    assert len(load_datasets(DataConfig({path: 0.001}))[0]) == 1
    half = prompts_of(load_datasets(DataConfig({path: 0.5}))[0])
    numbers = [int(text.split()[1]) for text in half]
    assert len(set(numbers)) == 20 and numbers != list(range(20)) and numbers == sorted(numbers)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.5, "half", True, float("nan")])
def test_fraction_out_of_bounds(tmp_path, fraction):
    path = write_lines(tmp_path / "p.jsonl", rows(3))
    with pytest.raises(ConfigError, match="fraction"):
        load_datasets(DataConfig({path: fraction}))


def test_training_rows_keep_their_order(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", rows(50))
    assert prompts_of(load_datasets(DataConfig({path: 1.0}), seed=3)[0]) == [f"a {i}" for i in range(50)]


def test_a_part_is_drawn_by_the_seed(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", rows(50))
    settings = DataConfig({path: 1.0}, max_train_samples=20)
    first, again = (prompts_of(load_datasets(settings, seed=3)[0]) for _ in range(2))
    assert first == again != [f"a {i}" for i in range(20)]
    assert len(set(first)) == 20


def test_sources_of_different_formats_mix(tmp_path, tiny_tokenizer):
    ultra = [{**row, "prompt": row["chosen"][0]["content"]} for row in rows(3, "ultra")]
    explicit = [
        {"prompt": r["chosen"][:1], "chosen": r["chosen"][1:], "rejected": r["rejected"][1:]} for r in rows(3, "e")
    ]
    named = [
        {side: [{**m, "name": "n", "weight": 1} for m in row[side]] for side in ("chosen", "rejected")}
        for row in rows(3, "named")
    ]
    sources = {"whole": rows(3), "ultra": ultra, "explicit": explicit, "named": named, "text": text_rows(3)}
    mixer = {write_lines(tmp_path / f"{name}.jsonl", entries): 1.0 for name, entries in sources.items()}
    train, _ = load_datasets(DataConfig(mixer))
    assert len(train) == 15
    data, report = tokenize_pairs(train, tiny_tokenizer, TokenizeOptions())
    assert report.kept == 15
    decoded = {tiny_tokenizer.decode(pair["prompt_ids"]) for pair in data}
    header = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    header += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert decoded == {header.format(f"{n} {i}") for n in ("a", "ultra", "e", "named") for i in range(3)} | {
        f"t {i}" for i in range(3)
    }


def test_one_config_per_source(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", rows(3))
    with pytest.raises(ConfigError, match="2 entries for 1 sources"):
        load_datasets(DataConfig({path: 1.0}, dataset_configs=[None, "x"]))


# evaluation data


def test_eval_mixer(preferences, tmp_path):
    path = write_lines(tmp_path / "p.jsonl", rows(6))
    other = write_lines(tmp_path / "e.jsonl", rows(4, "e"))
    train, evaluation = load_datasets(DataConfig({path: 1.0}, eval_dataset_mixer={other: 1.0}))
    assert len(train) == 6 and prompts_of(evaluation) == [f"e {i}" for i in range(4)]
    # with an evaluation source of its own, the training source's test splits are not read
    settings = DataConfig({preferences: 1.0}, ["train_prefs", "test_prefs"], eval_dataset_mixer={other: 0.5})
    train, evaluation = load_datasets(settings)
    assert len(train) == 10 and len(evaluation) == 2 and prompts_of(evaluation)[0].startswith("e ")
    settings = DataConfig({path: 1.0}, ["train_prefs", "test_prefs"], eval_dataset_mixer={preferences: 1.0})
    assert prompts_of(load_datasets(settings)[1]) == [f"b {i}" for i in range(4)]
    settings = DataConfig({path: 1.0}, ["train_prefs"], eval_dataset_mixer={preferences: 1.0})
    with pytest.raises(DataError, match=r"no evaluation split.*test_prefs"):
        load_datasets(settings)


def test_max_samples(preferences):
    settings = DataConfig({preferences: 1.0}, ["train_prefs", "test_prefs"], max_train_samples=3, max_eval_samples=2)
    train, evaluation = load_datasets(settings)
    assert (len(train), len(evaluation)) == (3, 2)


@pytest.mark.parametrize("size, prompts", [(0.25, 5), (3, 3), (1.0, 1)])
def test_held_out_prompts_are_never_trained_on(tmp_path, size, prompts):
    path = write_lines(tmp_path / "p.jsonl", rows(60, prompts=20))
    train, evaluation = load_datasets(DataConfig({path: 1.0}, test_size=size))
    assert len(train) + len(evaluation) == 60
    assert len(set(prompts_of(evaluation))) == prompts
    assert not set(prompts_of(train)) & set(prompts_of(evaluation))
    again = load_datasets(DataConfig({path: 1.0}, test_size=size))[1]
    assert again.to_list() == evaluation.to_list()


def test_hold_out_other_forms(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", text_rows(5) + text_rows(5))
    train, held = load_datasets(DataConfig({path: 1.0}, test_size=2))
    assert (len(train), len(held)) == (6, 4) and not set(train["prompt"]) & set(held["prompt"])
    ids = {"prompt_ids": [[1], [1], [2]], "chosen_ids": [[3]] * 3, "rejected_ids": [[4]] * 3}
    Dataset.from_dict(ids).save_to_disk(tmp_path / "ids")
    train, held = load_datasets(DataConfig({str(tmp_path / "ids"): 1.0}, test_size=1))
    assert not set(map(tuple, train["prompt_ids"])) & set(map(tuple, held["prompt_ids"]))


def test_unusable_rows_are_not_held_out(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [*text_rows(4), {"prompt": None, "chosen": "a", "rejected": "b"}])
    train, held = load_datasets(DataConfig({path: 1.0}, test_size=3))
    assert None in train["prompt"] and len(held) == 3


@pytest.mark.parametrize("size", [0.01, 20, 30])
def test_hold_out_must_leave_both_sides(tmp_path, size):
    path = write_lines(tmp_path / "p.jsonl", rows(60, prompts=20))
    with pytest.raises(DataError, match="of 20 distinct prompts"):
        load_datasets(DataConfig({path: 1.0}, test_size=size))


def test_test_size_beside_an_evaluation_split(preferences):
    with pytest.raises(ConfigError, match="test_size"):
        load_datasets(DataConfig({preferences: 1.0}, ["train_prefs", "test_prefs"], test_size=0.1))


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the real pairs of ../shared/data are not here")
def test_real_sources_mix():
    names = ["hh_harmless_train.jsonl.gz", "judged_pairs_train.jsonl.gz"]
    mixer = {str(SHARED_DATA / name): fraction for name, fraction in zip(names, (0.1, 0.1), strict=True)}
    train, evaluation = load_datasets(
        DataConfig(mixer, eval_dataset_mixer={str(SHARED_DATA / "hh_harmless_test.jsonl.gz"): 1.0})
    )
    assert len(train) == 200 + 133 and len(evaluation) == 299
