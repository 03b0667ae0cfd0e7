"""Broken parquet files, directories, saved data sets, names and token ids: as in test_broken_inputs.py."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from simpo.data.config import DataConfig
from simpo.data.load import load_mix
from simpo.data.token_ids import check_token_ids
from simpo.errors import ConfigError, DataError

from .test_broken_inputs import LINE, TEXT, lines, put, refused, run

# parquet


def parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


@pytest.mark.parametrize(
    "columns, parts",
    [
        ({"prompt": ["q"], "chosen": [1.5], "rejected": ["b"]}, ["column chosen has type", "float64"]),
        ({"prompt": ["q"], "chosen": [b"a"], "rejected": [b"b"]}, ["column chosen has type", "binary"]),
        ({"prompt": ["q"], "chosen": [["a"]], "rejected": [["b"]]}, ["column chosen has type"]),
        ({"prompt": [3], "chosen": ["a"], "rejected": ["b"]}, ["column prompt has type"]),
        (
            {
                "prompt": pa.array([], pa.string()),
                "chosen": pa.array([], pa.string()),
                "rejected": pa.array([], pa.string()),
            },
            ["holds no rows"],
        ),
    ],
    ids=["float", "binary", "list of texts", "prompt of numbers", "no rows"],
)
def test_parquet_of_wrong_types(tmp_path, tiny_tokenizer, columns, parts):
    path = parquet(tmp_path / "p.parquet", columns)
    refused(DataError, [path, *parts], DataConfig({path: 1.0}), tiny_tokenizer)


def test_parquet_with_invalid_text(tmp_path, tiny_tokenizer):
    good = pa.array(["q"] * 3)
    offsets = pa.py_buffer(b"".join(number.to_bytes(4, "little") for number in (0, 1, 2, 3)))
    bad = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xffb")])
    path = parquet(tmp_path / "p.parquet", {"prompt": good, "chosen": bad, "rejected": good})
    refused(DataError, [path, "row 1: is no UTF-8"], DataConfig({path: 1.0}), tiny_tokenizer)


def test_parquet_cut_off(tmp_path, tiny_tokenizer):
    path = Path(parquet(tmp_path / "p.parquet", {key: [value] * 100 for key, value in TEXT.items()}))
    path.write_bytes(path.read_bytes()[:-30])
    refused(DataError, [str(path), "cannot be read as parquet"], DataConfig({str(path): 1.0}), tiny_tokenizer)


def test_parquet_with_a_column_twice(tmp_path, tiny_tokenizer):
    names = ["prompt", "chosen", "chosen", "rejected"]
    pq.write_table(pa.Table.from_arrays([pa.array(["q"])] * 4, names=names), tmp_path / "p.parquet")
    path = str(tmp_path / "p.parquet")
    refused(DataError, [path, "chosen"], DataConfig({path: 1.0}), tiny_tokenizer)


def test_parquet_of_other_text_types(tmp_path, tiny_tokenizer):
    large = {key: pa.array([value], pa.large_string()) for key, value in TEXT.items()}
    coded = {key: pa.array([value]).dictionary_encode() for key, value in TEXT.items()}
    for name, columns in (("large", large), ("coded", coded)):
        assert run(DataConfig({parquet(tmp_path / f"{name}.parquet", columns): 1.0}), tiny_tokenizer).kept == 1


# directories and saved data sets


def test_a_directory_without_data(tmp_path, tiny_tokenizer):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "other" / "notes.md", "nothing")
    for name in ("empty", "other"):
        parts = [str(tmp_path / name), "cannot be read as a data set", "save_to_disk"]
        refused(DataError, parts, DataConfig({str(tmp_path / name): 1.0}), tiny_tokenizer)


@pytest.fixture
def saved(tmp_path):
    Dataset.from_list([TEXT] * 50).save_to_disk(tmp_path / "saved", num_shards=2)
    return tmp_path / "saved"


def test_a_saved_dataset_without_one_of_its_files(saved, tiny_tokenizer):
    file = sorted(saved.glob("*.arrow"))[1]
    file.unlink()
    refused(
        DataError,
        [str(saved), "cannot be read as a data set", file.name],
        DataConfig({str(saved): 1.0}),
        tiny_tokenizer,
    )


@pytest.mark.parametrize("size", [0, 100, -200])
def test_a_saved_dataset_with_a_file_cut_off(saved, tiny_tokenizer, size):
    file = sorted(saved.glob("*.arrow"))[1]
    file.write_bytes(file.read_bytes()[:size])
    refused(DataError, [str(saved), "cannot be read as a data set"], DataConfig({str(saved): 1.0}), tiny_tokenizer)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
def test_a_saved_dataset_with_a_broken_description(saved, tiny_tokenizer, name):
    (saved / name).write_text("{")
    refused(DataError, [str(saved), "cannot be read as a data set"], DataConfig({str(saved): 1.0}), tiny_tokenizer)


def test_a_saved_split_is_missing(tmp_path, tiny_tokenizer):
    DatasetDict({name: Dataset.from_list([TEXT]) for name in ("train", "test")}).save_to_disk(tmp_path / "both")
    shutil.rmtree(tmp_path / "both" / "train")
    refused(DataError, [str(tmp_path / "both")], DataConfig({str(tmp_path / "both"): 1.0}), tiny_tokenizer)


def test_files_of_one_directory_that_do_not_agree(tmp_path, tiny_tokenizer):
    put(tmp_path / "d" / "train-1.jsonl", LINE)
    put(tmp_path / "d" / "train-2.jsonl", lines({"question": "q", "answer": "a"}))
    refused(
        DataError,
        [str(tmp_path / "d"), "cannot be read as a data set"],
        DataConfig({str(tmp_path / "d"): 1.0}),
        tiny_tokenizer,
    )


def test_a_link_to_nowhere(tmp_path, tiny_tokenizer):
    os.symlink(tmp_path / "gone.jsonl", tmp_path / "p.jsonl")
    path = str(tmp_path / "p.jsonl")
    refused(DataError, [path, "a link to", "gone.jsonl"], DataConfig({path: 1.0}), tiny_tokenizer)


# names


@pytest.mark.parametrize(
    "source, parts",
    [
        ("data/missing.jsonl", ["no such file or directory", "looked for /"]),
        ("no/such/folder/at/all", ["no such file or directory"]),
        ("HuggingFaceH4/ultrafeedback_binarised", ["is no local file or directory", "cannot be loaded from the hub"]),
    ],
)
def test_names_of_nothing(tiny_tokenizer, source, parts):
    refused(DataError, [source, *parts], DataConfig({source: 1.0}), tiny_tokenizer)


def test_misspelled_splits(saved, tmp_path, tiny_tokenizer):
    DatasetDict({"train_prefs": Dataset.from_list([TEXT])}).save_to_disk(tmp_path / "d")
    source = str(tmp_path / "d")
    parts = [source, "no split 'train_pref'", "it has train_prefs"]
    refused(DataError, parts, DataConfig({source: 1.0}, ["train_pref"]), tiny_tokenizer)
    refused(ConfigError, ["'trian' does not tell"], DataConfig({source: 1.0}, ["trian"]), tiny_tokenizer)
    refused(DataError, [source, "no split 'train[:x%]'"], DataConfig({source: 1.0}, ["train[:x%]"]), tiny_tokenizer)


def test_misspelled_configurations(tmp_path, tiny_tokenizer):
    put(tmp_path / "d" / "one.jsonl", LINE)
    put(tmp_path / "d" / "README.md", "---\nconfigs:\n- config_name: one\n  data_files: one.jsonl\n---\n")
    source = str(tmp_path / "d")
    settings = DataConfig({source: 1.0}, dataset_configs={source: "won"})
    refused(DataError, [source, "'won' not found", "['one']"], settings, tiny_tokenizer)
    path = put(tmp_path / "p.jsonl", LINE)
    settings = DataConfig({path: 1.0}, dataset_configs=["main"])
    refused(ConfigError, [path, "has no configuration 'main'", "write null"], settings, tiny_tokenizer)


@pytest.mark.parametrize("amount", [0, -1, 0.0, 1.5, "half", "0.5", None, True, float("nan"), float("inf"), [1]])
def test_amounts_that_are_none(tmp_path, tiny_tokenizer, amount):
    path = put(tmp_path / "p.jsonl", LINE)
    parts = ["dataset_mixer", path, repr(amount), "a fraction above 0 and at most 1, or a whole number of rows"]
    refused(ConfigError, parts, lambda: DataConfig({path: amount}), tiny_tokenizer)


def test_more_rows_than_there_are(tmp_path, tiny_tokenizer):
    path = put(tmp_path / "p.jsonl", LINE * 3)
    refused(DataError, [path, "4 rows are asked for and 3 are there"], DataConfig({path: 4}), tiny_tokenizer)


# token ids


def token_ids(tmp_path, **changes):
    rows = {"prompt_ids": [[1, 2]] * 3, "chosen_ids": [[3]] * 3, "rejected_ids": [[4]] * 3, **changes}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "ids")
    return str(tmp_path / "ids")


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"chosen_ids": [["a"]] * 3}, ["column chosen_ids has type", "whole numbers"]),
        ({"chosen_ids": ["3"] * 3}, ["column chosen_ids has type"]),
        ({"chosen_ids": [3] * 3}, ["column chosen_ids has type"]),
        ({"chosen_ids": [[3.5]] * 3}, ["column chosen_ids has type", "float64"]),
        ({"chosen_ids": [[True]] * 3}, ["column chosen_ids has type", "bool"]),
        ({"chosen_ids": [[3], [], [3]]}, ["row 1: chosen_ids is empty"]),
        ({"prompt_ids": [[3], [1], None]}, ["row 2: prompt_ids is empty"]),
        ({"rejected_ids": [[3], [3, None], [3]]}, ["row 1: rejected_ids holds null"]),
        ({"rejected_ids": [[3], [3], [3, -100]]}, ["row 2: rejected_ids holds -100", "below 0"]),
        ({"rejected_ids": [[3], [3], [3, 10**6]]}, ["row 2: rejected_ids holds 1000000", "not in the vocabulary"]),
    ],
)
def test_token_ids_that_are_none(tmp_path, tiny_tokenizer, changes, parts):
    source = token_ids(tmp_path, **changes)
    with pytest.raises(DataError) as error:
        check_token_ids(load_mix(DataConfig({source: 1.0})).train, "train", len(tiny_tokenizer))
    assert all(part in str(error.value) for part in [source if "vocabulary" not in parts[-1] else "train", *parts]), (
        error.value
    )


def test_some_columns_of_token_ids_are_missing(tmp_path, tiny_tokenizer):
    Dataset.from_dict({"prompt_ids": [[1]], "chosen_ids": [[2]]}).save_to_disk(tmp_path / "ids")
    refused(DataError, ["no column chosen"], DataConfig({str(tmp_path / "ids"): 1.0}), tiny_tokenizer)
