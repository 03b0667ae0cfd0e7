"""`simpo onpolicy`: steps in their order, what is not run again, what is refused; and once with real processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_from_disk

from simpo import cli
from simpo.cli.launch import launch_config
from simpo.errors import ConfigError, Interrupted
from simpo.onpolicy.annotate import AnnotateSettings
from simpo.onpolicy.binarize import BinarizeSettings
from simpo.onpolicy.pipeline import run_onpolicy
from simpo.onpolicy.recipe import Launch, read_recipe
from simpo.onpolicy.settings import GenerateSettings
from simpo.onpolicy.steps import StepFailed
from simpo.processes import write_note
from simpo.settings import read_settings
from simpo.settings.flat import read_flat
from tests.launching import environment
from tests.onpolicy.pipelines import Played, write_pipeline


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "e_counter", raising=False)
    return write_pipeline(tmp_path, "some/model")


def onpolicy(path: Path, words: Sequence[str] = (), **given: Any) -> Played:
    """Run it with played steps."""
    played = given.pop("run", None) or Played()
    run_onpolicy([str(path)], list(words), launch_config=launch_config, run=played, **given)
    return played


def test_steps_run_in_their_order_and_not_again(path: Path, tmp_path: Path, capsys) -> None:
    assert onpolicy(path).ran == ["generate out", "annotate out", "binarize out"]
    assert set(load_from_disk(str(tmp_path / "out" / "pairs"))) == {"train", "test"}
    capsys.readouterr()
    assert onpolicy(path).ran == []
    assert capsys.readouterr().out.splitlines() == [
        f"{step}: finished, {tmp_path}/out/{folder}"
        for step, folder in (("generate", "responses"), ("annotate", "scores"), ("binarize", "pairs"))
    ]


def test_steps_are_told_what_the_file_says(path: Path, tmp_path: Path) -> None:
    onpolicy(path, ["--generate.temperature=0.7"])
    out, recipe = tmp_path / "out", read_recipe([path])
    generate = read_flat(GenerateSettings, out / "settings" / "generate.yaml")
    assert generate == GenerateSettings(
        **{**vars(recipe.generate), "temperature": 0.7, "output_dir": str(out / "responses")}
    )
    annotate = read_flat(AnnotateSettings, out / "settings" / "annotate.yaml")
    assert (annotate.generations, annotate.output_dir) == (str(out / "responses"), str(out / "scores"))
    assert annotate.annotators == recipe.annotate.annotators and annotate.use_cpu
    binarize = read_flat(BinarizeSettings, out / "settings" / "binarize.yaml")
    assert binarize == BinarizeSettings(str(out / "responses"), str(out / "scores"), str(out / "pairs"), test_size=2)


def test_a_step_that_fails_is_named_and_gone_on_with(path: Path, tmp_path: Path) -> None:
    failing = Played(lambda verb, _: 2 if verb == "annotate" else None)
    with pytest.raises(StepFailed) as failed:
        onpolicy(path, run=failing)
    assert str(failed.value).startswith(
        f"annotate ended with exit code 2: simpo annotate {tmp_path}/out/settings/annotate.yaml\n  What was done stays"
    )
    with pytest.raises(StepFailed, match=r"^annotate ended with killed by SIGKILL"):
        onpolicy(path, run=Played(lambda *_: -9))
    with pytest.raises(StepFailed, match=r"^annotate ended with no error, but it is not finished"):
        onpolicy(path, run=lambda _: 0)
    with pytest.raises(Interrupted, match=r"^annotate: stopped by a signal"):  # which has an exit code of its own
        onpolicy(path, run=Played(lambda *_: 75))
    assert onpolicy(path).ran == ["annotate out", "binarize out"]


def test_other_settings_are_refused_and_other_devices_are_not(path: Path) -> None:
    onpolicy(path)
    words = ["--generate.batch_size=3", "--generate.use_cpu=false", "--annotate.prompts_per_batch=3"]
    assert onpolicy(path, words).ran == []
    with pytest.raises(ConfigError) as refused:
        onpolicy(path, ["--generate.temperature=0.5", "--binarize.min_margin=1"])
    assert str(refused.value).splitlines()[1:3] == [
        "  generate.temperature: 0.8 there, 0.5 now", "  binarize.min_margin: 0.0 there, 1.0 now",
    ]  # fmt: skip
    other = '{"es": {"kind": "function", "function": "e_counter:other"}}'
    (path.parent / "e_counter.py").write_text("def other(prompt, responses): ...\ndef count(prompt, responses): ...\n")
    sys.modules.pop("e_counter", None)
    with pytest.raises(ConfigError, match=r'annotate.es.function: "e_counter:count" there, "e_counter:other" now'):
        onpolicy(path, [f"--annotate.annotators={other}"])


def test_settings_of_steps_that_have_left_nothing_may_change(path: Path, tmp_path: Path) -> None:
    """Else a margin that leaves no pair would cost all the samples."""
    with pytest.raises(StepFailed, match="binarize ended with"):
        onpolicy(path, ["--binarize.min_margin=9"], run=Played(lambda verb, _: 2 if verb == "binarize" else None))
    with pytest.raises(ConfigError, match=r"generate.temperature: 0.8 there, 0.5 now\nUse"):
        onpolicy(path, ["--generate.temperature=0.5", "--binarize.min_margin=0"])
    assert onpolicy(path, ["--binarize.min_margin=0"]).ran == ["binarize out"]
    with pytest.raises(ConfigError, match=r"binarize.min_margin: 0.0 there, 9.0 now"):
        onpolicy(path, ["--binarize.min_margin=9"])
    shutil.rmtree(tmp_path / "out" / "scores")  # the pairs depend on them still
    with pytest.raises(ConfigError, match=r"binarize.min_margin: 0.0 there"):
        onpolicy(path, ["--binarize.min_margin=9"])
    shutil.rmtree(tmp_path / "out" / "pairs")
    assert onpolicy(path, ["--binarize.test_size=3"]).ran == ["annotate out", "binarize out"]


def test_a_start_that_was_killed_at_once_is_no_obstacle(path: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("onpolicy.lock", "onpolicy.json.part"):
        (tmp_path / "out" / name).touch()
    assert len(onpolicy(path).ran) == 3


def test_a_folder_of_something_else_and_a_second_driver_are_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.md").touch()
    with pytest.raises(ConfigError, match=r"thesis holds something else \(chapter-1.md\); choose another folder"):
        onpolicy(path, [f"--output_dir={tmp_path}/thesis"])

    def second(verb: str, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"another process works in .*out; wait for it, or choose another"):
            onpolicy(path)

    assert len(onpolicy(path, run=Played(second)).ran) == 3


def test_what_a_killed_driver_left_is_stopped_before_anything_is_looked_at(path: Path, tmp_path: Path) -> None:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], start_new_session=True)
    (tmp_path / "out").mkdir()
    write_note(tmp_path / "out" / "process.json", left.pid)
    gone: list[bool] = []
    onpolicy(path, run=Played(lambda *_: gone.append(left.poll() is not None)))
    assert gone == [True, True, True]


def test_what_would_fail_later_is_found_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(words: Sequence[str]) -> str:
        with pytest.raises(ConfigError) as refused:
            onpolicy(path, words)
        return str(refused.value)

    def annotator(**settings: Any) -> list[str]:
        return [f"--annotate.annotators={yaml.safe_dump({'es': settings}, default_flow_style=True)}"]

    assert "annotators.es: function: nowhere:f cannot be imported: ModuleNotFoundError" in refuse(
        annotator(kind="function", function="nowhere:f")
    )
    assert refuse(annotator(kind="reward_model", model="./no-rm")) == (
        "annotators.es: model: './no-rm': there is no such directory"
    )
    assert "annotators.es: model: 'no/such-rm' cannot be found" in refuse(
        annotator(kind="reward_model", model="no/such-rm")
    )
    judge = {"kind": "judge", "model": "m", "base_urls": "http://localhost:9/v1"}
    evaluated = "--evaluate.annotators={es: {kind: function, function: 'e_counter:count'}}"
    assert "api_key_env: NO_KEY is not set" in refuse([*annotator(**judge, api_key_env="NO_KEY"), evaluated])
    assert "annotators.es: prompt_template" in refuse([*annotator(**judge, prompt_template="no.jinja"), evaluated])
    server = ["--generate.engine=server", "--generate.server_urls=[http://localhost:9/v1]"]
    plain = yaml.safe_load(path.read_text())
    del plain["generate"]["batch_size"], plain["generate"]["use_cpu"]
    path.write_text(yaml.safe_dump(plain))
    assert refuse([*server, "--generate.api_key_env=NO_KEY"]) == (
        "generate: api_key_env: the environment variable NO_KEY is not set"
    )
    assert "--accelerate zero9: no such file or name" in refuse(["--launch.train=zero9"])
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "inside `accelerate launch`: start it directly" in refuse([])


def test_launchers_of_the_steps(path: Path) -> None:
    words = ["--launch.annotate={accelerate: cpu, num_processes: 2}"]
    generate, annotate, binarize = onpolicy(path, words, launch=Launch("multi_gpu", 4)).commands
    assert generate[5:] == [f"--accelerate={launch_config('multi_gpu')}", "--num_processes=4"]
    assert annotate[5:] == [f"--accelerate={launch_config('cpu')}", "--num_processes=2"]
    assert binarize[5:] == []


def test_a_step_may_be_started_plainly(path: Path) -> None:
    generate, annotate, _ = onpolicy(path, ["--launch.generate=null"], launch=Launch("multi_gpu")).commands
    assert generate[5:] == [] and annotate[5:] == [f"--accelerate={launch_config('multi_gpu')}"]


def test_a_dry_run_says_everything_and_writes_nothing(path: Path, tmp_path: Path, capsys) -> None:
    played = onpolicy(path, dry_run=True)
    assert played.ran == [] and not (tmp_path / "out").exists()
    said = capsys.readouterr().out
    assert f"generate (to be run)\n  simpo generate {tmp_path}/out/settings/generate.yaml\n" in said
    assert f"    generations: {tmp_path}/out/responses\n" in said and "test_size: 2.0" in said
    onpolicy(path)
    capsys.readouterr()
    onpolicy(path, dry_run=True)
    assert "binarize (finished)\n" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_with_real_processes_gives_pairs_that_train(
    tiny_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    path = write_pipeline(tmp_path, tiny_dir)
    assert cli.main(["onpolicy", str(path)]) == 0
    captured = capfd.readouterr()
    assert "36 responses to 12 prompts" in captured.out and "12 prompts annotated" in captured.out
    assert "Sampling" in captured.err  # the bars of the steps
    pairs = tmp_path / "out" / "pairs"
    assert {name: len(rows) for name, rows in load_from_disk(str(pairs)).items()}["test"] == 2
    assert not (tmp_path / "out" / "process.json").exists()

    from simpo.run import run_training

    words = [f"--{key}={value}" for key, value in read_recipe([path]).train.items()]  # type: ignore[union-attr]
    words += [f"--model_name_or_path={tiny_dir}", f"--dataset_mixer={{{pairs}: 1.0}}", f"--output_dir={tmp_path}/m"]
    run_training(read_settings([], [*words, "--max_steps=1", "--save_strategy=no"]), audit=False)
    assert (tmp_path / "m" / "model.safetensors").is_file() and os.listdir(tmp_path / "m")
