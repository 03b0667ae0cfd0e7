"""`simpo analyze`: scored once, again when something changed, and errors that say what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from simpo.cli import analysis_files, main
from simpo.cli.analysis_plan import Plan, file_name, other_starts, short_names
from simpo.errors import ConfigError
from simpo.evals.pairs import kept
from tests.launching import WORKERS, torchrun


@pytest.fixture(scope="module")
def tuned(tiny_dir: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model after a step that nobody took, with the manifest of a run that began with it."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("runs") / "tuned"
    shutil.copytree(tiny_dir, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    told = {"model_name_or_path": tiny_dir, "beta": 2.5, "max_length": 300, "max_prompt_length": 200}
    (folder / "run_manifest.json").write_text(json.dumps({"settings": told, "gamma": 1.25}))
    return str(folder)


@pytest.fixture
def pairs_file(golden: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in golden["rows"]))
    return str(path)


@pytest.fixture
def scorings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were scored, one by one."""
    found: list[str] = []
    real = kept.score

    def counted(settings: Any, *rest: Any) -> Any:
        found.append(settings.name)
        return real(settings, *rest)

    monkeypatch.setattr(kept, "score", counted)
    return found


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time."""
    monkeypatch.setattr(analysis_files, "_pictures", lambda *_: [])


def analyze(*words: str, data: str, output: Path) -> int:
    return main(["analyze", *words, "--data", data, "--output", str(output), "--use_cpu=true"])


@pytest.mark.usefixtures("no_pictures")
def test_scores_stay_until_something_changes(tiny_dir, tuned, pairs_file, scorings, tmp_path: Path, capsys) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(tuned, copy)
    words = ["--models", str(copy), tiny_dir, "--names", "new", "old", "--prompts", "2", "--max-new-tokens", "4"]

    assert analyze(*words, data=pairs_file, output=out) == 0
    assert scorings == ["new", "old"]  # the initial policy is one of the two
    first = capsys.readouterr().out
    assert "new: scored" in first and "change of chosen" in first
    kept_answers = (out / "answers" / "new.json").read_bytes()
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {"analysis.csv", "analysis.md", "report.html", "scores/new.parquet", "answers/old.json"} <= written
    assert not [name for name in written if name.endswith((".part", ".unfinished"))]

    assert analyze(*words, data=pairs_file, output=out) == 0
    assert scorings == ["new", "old"] and "new: scores are there" in capsys.readouterr().out
    assert (out / "answers" / "new.json").read_bytes() == kept_answers

    before = pq.read_table(out / "scores" / "new.parquet")
    shutil.copy(Path(tiny_dir) / "model.safetensors", copy / "model.safetensors")  # trained again
    assert analyze(*words, data=pairs_file, output=out) == 0
    assert scorings[2:] == ["new"]
    after, old = (pq.read_table(out / "scores" / f"{name}.parquet") for name in ("new", "old"))
    assert after["chosen"] == old["chosen"] != before["chosen"]
    assert (out / "answers" / "new.json").read_bytes() != kept_answers

    assert analyze(*words, "--max_samples=4", "--prompts", "0", data=pairs_file, output=out) == 0
    assert scorings[3:] == ["new", "old"]  # other pairs
    assert pq.read_table(out / "scores" / "new.parquet").num_rows == 4

    (out / "scores" / "new.parquet").write_bytes(b"torn")
    assert analyze(*words, "--max_samples=4", "--prompts", "0", data=pairs_file, output=out) == 0
    assert scorings[5:] == ["new"]


def test_scores_are_those_of_eval_pairs(tiny_dir, tuned, pairs_file, tmp_path: Path) -> None:
    """By the first model's settings for all; and the pictures are there."""
    pytest.importorskip("matplotlib")
    from simpo.evals.pairs.measure import run_pairs
    from simpo.evals.pairs.settings import PairsSettings

    out = tmp_path / "out"
    words = ["--models", tuned, "--prompts", "0", "--initial", tiny_dir]
    assert analyze(*words, data=pairs_file, output=out) == 0
    assert {"margins-by-length.png", "divergences.png"} <= {path.name for path in out.iterdir()}
    settings = {"dataset_name": pairs_file, "use_cpu": True, "max_length": 300, "max_prompt_length": 200}
    for name, model in (("tuned", tuned), ("initial", tiny_dir)):
        run_pairs(PairsSettings(model, str(tmp_path / name), **settings))
        paths = (tmp_path / name / "pairs.parquet", out / "scores" / f"{name}.parquet")
        one, two = map(pq.read_table, paths)
        for column in two.column_names:
            assert one[column].to_pylist() == two[column].to_pylist(), column


@pytest.mark.usefixtures("no_pictures")
def test_without_an_initial_policy_it_says_how(tiny_dir, tuned, pairs_file, tmp_path: Path, capsys) -> None:
    shutil.copytree(tuned, tmp_path / "lost")
    manifest = tmp_path / "lost" / "run_manifest.json"
    manifest.write_text(manifest.read_text().replace(json.dumps(tiny_dir), json.dumps(str(tmp_path / "gone"))))
    for model, note in ((tiny_dir, "no run says which it is"), (str(tmp_path / "lost"), "which a run names")):
        out = tmp_path / f"out-{Path(model).name}"
        assert analyze("--models", model, "--prompts", "0", data=pairs_file, output=out) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert note in text and "--initial MODEL" in text and "change of chosen" not in text
    words = ["--models", tiny_dir, "--prompts", "0", "--initial", str(tmp_path / "gone")]
    assert analyze(*words, data=pairs_file, output=tmp_path / "named") == 2  # what was asked for must be there
    assert "gone" in capsys.readouterr().err


def test_wrong_folders(tiny_dir, pairs_file, tmp_path: Path, capsys) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    assert analyze("--models", tiny_dir, data=pairs_file, output=full) == 2
    assert "holds something else (notes.txt)" in capsys.readouterr().err

    other = tmp_path / "other"
    other.mkdir()
    state = {"format": 1, "data": {"dataset": {"else.jsonl": 1.0}, "splits": None}, "models": {}}
    (other / "analysis.json").write_text(json.dumps(state))
    assert analyze("--models", tiny_dir, data=pairs_file, output=other) == 2
    assert "an analysis of other pairs (else.jsonl)" in capsys.readouterr().err
    (other / "analysis.json").write_text("[]")
    assert analyze("--models", tiny_dir, data=pairs_file, output=other) == 2
    assert "is none of simpo analyze" in capsys.readouterr().err

    assert analyze("--models", tiny_dir, data=pairs_file, output=full / "notes.txt" / "below") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_wrong_models_and_data(tiny_dir, pairs_file, tmp_path: Path, capsys) -> None:
    assert analyze("--models", str(tmp_path / "none"), data=pairs_file, output=tmp_path / "a") == 2
    assert "none" in capsys.readouterr().err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert analyze("--models", tiny_dir, data=str(empty), output=tmp_path / "b") == 2
    assert "empty.jsonl" in capsys.readouterr().err
    wrong = ("--models", tiny_dir, "--initial", str(tmp_path / "gone"))
    assert analyze(*wrong, data=pairs_file, output=tmp_path / "c") == 2
    assert "gone" in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in "abc")  # another try may take them
    assert main(["analyze", "--models", tiny_dir]) == 2
    assert "--data: is missing" in capsys.readouterr().err


def plan(models: list[str], *overrides: str, names: tuple[str, ...] = (), **more: Any) -> Plan:
    given = {"initial": None, "output": Path("out"), "prompts": 0, "max_new_tokens": 8} | more
    return Plan.of(models, names, ["--dataset_name=x.jsonl", *overrides], **given)


def test_a_plan_is_checked(tiny_dir) -> None:
    beside = f"{tiny_dir}/../{Path(tiny_dir).name}"
    for models, more, message in (
        ([tiny_dir, tiny_dir], {}, "is there twice"),
        ([tiny_dir, beside], {}, f"twice, as {tiny_dir} and as"),
        ([""], {}, "one is empty"),
        (["a", "b"], {"names": ("x",)}, "--names: 1 for 2 models"),
        (["a", "b"], {"names": ("x", "x")}, "the same one"),
        (["a", "b"], {"names": ("x/y", "x_y")}, "only in characters"),
        (["a"], {"max_new_tokens": 0}, "at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            plan(models, **more)
    for word in ("--name=x", "--output_dir=x", "--model_name_or_path=x"):
        with pytest.raises(ConfigError, match="in its place"):
            plan(["a"], word)
    with pytest.raises(ConfigError, match="unknown setting 'betta'"):
        plan(["a"], "--betta=2")


def test_all_models_see_the_same_texts(tiny_dir, tuned) -> None:
    found = plan([tuned, "b"])
    assert [(one.max_length, one.max_prompt_length) for one in found.settings] == [(300, 200)] * 2
    assert found.initial is not None and found.initial.model_name_or_path == tiny_dir and found.implied
    assert found.initial.max_length == 300 and found.beta == 1.0
    assert plan([tuned], "--beta=2").beta == 2.0
    assert plan([tuned], initial="none").initial is None
    assert plan([tuned, tiny_dir]).initial is not None and plan([tuned, tiny_dir]).initial.name == "tiny"
    assert plan(["x"], initial="y", names=("initial",)).initial.name == "initial policy"


def test_the_initial_policy_is_that_of_preference_runs(tiny_dir, tuned, tmp_path: Path) -> None:
    """A supervised run among the models began with another one."""
    manifests = {
        "sft": {"settings": {"model_name_or_path": "pretrained"}},
        "simpo": {"settings": {"model_name_or_path": str(tmp_path / "sft")}, "gamma": 1.0},
        "other": {"settings": {"model_name_or_path": "elsewhere"}, "gamma": 1.0},
    }
    for name, manifest in manifests.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run_manifest.json").write_text(json.dumps(manifest))
    sft, simpo, other = (str(tmp_path / name) for name in manifests)
    found = plan([sft, simpo, other])
    assert found.initial is found.settings[0]
    assert plan([sft]).initial.model_name_or_path == "pretrained"
    (note,) = other_starts(found, found.initial)
    assert note.startswith("other began with elsewhere")


def test_names() -> None:
    assert short_names(["a/b/c", "x/b/c", "d/"]) == ["a/b/c", "x/b/c", "d"]
    assert short_names(["org/model"]) == ["model"] and file_name("γ 0.5, a/b") == "γ_0.5_a_b"


def test_models_are_listed_behind_one_option(capsys) -> None:
    assert main(["analyze", "--data", "x"]) == 2
    assert "--models: is missing" in capsys.readouterr().err
    assert main(["analyze", "--models", "a", "a", "--data", "x"]) == 2
    assert "a is there twice" in capsys.readouterr().err


@pytest.mark.multiprocess
def test_two_processes_write_what_one_writes(tiny_dir, pairs_file, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ["--models", tiny_dir, "--prompts", "2", "--max-new-tokens", "4"]
    assert analyze(*words, data=pairs_file, output=tmp_path / "one") == 0
    torchrun(WORKERS / "analyze.py", tiny_dir, pairs_file, str(tmp_path / "two"))
    one, two = (pq.read_table(tmp_path / name / "scores" / "tiny.parquet") for name in ("one", "two"))
    assert one.schema.equals(two.schema, check_metadata=True)  # so the other number of processes reads it
    for name in one.column_names:
        if name in ("chosen", "rejected"):
            np.testing.assert_allclose(one[name].to_numpy(), two[name].to_numpy(), atol=1e-3)
        else:
            assert one[name] == two[name]
    folders = (tmp_path / "one", tmp_path / "two")
    files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in folders]
    assert files[0] == files[1]
