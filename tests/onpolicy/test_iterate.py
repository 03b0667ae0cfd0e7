"""`simpo iterate`: whose model each round takes, which prompts, what goes on, what is refused; and killed at random."""

import json
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_from_disk

from simpo import cli
from simpo.cli.launch import launch_config
from simpo.errors import ConfigError
from simpo.onpolicy.iterate import run_iterate
from simpo.onpolicy.recipe import Launch
from simpo.onpolicy.rounds import RoundRow
from simpo.onpolicy.steps import StepFailed
from simpo.store import read_records
from tests.launching import environment
from tests.onpolicy.pipelines import Played, write_pipeline

WORKER = Path(__file__).parents[1] / "workers" / "kill_iterate.py"
ROUND = [f"{verb} round-{{0}}" for verb in ("generate", "annotate", "binarize", "train")]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "e_counter", raising=False)
    return write_pipeline(tmp_path, "some/model")


def iterate(path: Path, rounds: int, words: Sequence[str] = (), **given: Any) -> tuple[Played, list[RoundRow]]:
    """Run it with played steps."""
    played = given.pop("run", None) or Played()
    return played, run_iterate([str(path)], list(words), rounds, launch_config=launch_config, run=played, **given)


def steps_of(number: int) -> list[str]:
    own = [step.format(number) for step in ROUND] if number else []
    return [*own, "generate evaluate", "annotate evaluate"]


def settings_of(played: Played, verb: str) -> list[dict[str, Any]]:
    return [yaml.safe_load(Path(command[4]).read_text()) for command in played.commands if command[3] == verb]


def test_each_round_takes_the_model_of_the_one_before(path: Path, tmp_path: Path, capsys) -> None:
    played, table = iterate(path, 2, ["--generate.model_revision=v1"])
    assert played.ran == [*steps_of(0), *steps_of(1), *steps_of(2)]
    out = tmp_path / "out"
    models = ["some/model", "some/model", f"{out}/round-1/model", f"{out}/round-1/model", f"{out}/round-2/model"]
    asked = settings_of(played, "generate")
    assert [one["model_name_or_path"] for one in asked] == models
    assert [one.get("model_revision") for one in asked] == ["v1", "v1", None, None, None]
    first, second = settings_of(played, "train")
    assert (first["model_name_or_path"], first["model_revision"]) == ("some/model", "v1")
    assert second["model_name_or_path"] == f"{out}/round-1/model" and "model_revision" not in second
    assert second["dataset_mixer"] == {f"{out}/round-2/pairs": 1.0} and second["run_name"] == "out-round-2"
    # seed 13 of round n: 0.13 + n on all six prompts
    assert [(row.round, row.pairs, row.prompts, round(row.score.value, 6)) for row in table] == [
        (0, None, 6, 0.13), (1, 10, 6, 1.13), (2, 10, 6, 2.13),
    ]  # fmt: skip
    assert [row.win_rate.value for row in table if row.win_rate] == [1.0, 1.0]
    assert [row.tokens.value for row in table if row.tokens] == [4, 5, 6] and table[2].accuracy == 0.75
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| round") for line in lines) == 2  # after each round
    assert (out / "rounds.md").read_text().splitlines()[:5] == lines[-6:-1]
    assert f"the last policy is {out}/round-2/model" in lines[-1]


def test_a_larger_number_of_rounds_goes_on_and_a_smaller_one_forgets_nothing(path: Path, tmp_path: Path) -> None:
    iterate(path, 1)
    played, table = iterate(path, 3)
    assert played.ran == [*steps_of(2), *steps_of(3)] and len(table) == 4
    played, table = iterate(path, 1)
    assert played.ran == [] and len(table) == 4
    assert len(json.loads((tmp_path / "out" / "rounds.json").read_text())["rounds"]) == 4


def test_every_step_is_gone_on_with(path: Path) -> None:
    ran = []
    for _ in range(13):  # each call does one step, and fails in the next
        left = [None, 2]
        played = Played(lambda *_, left=left: left.pop(0))
        with pytest.raises(StepFailed):
            iterate(path, 2, run=played)
        ran.append(played.ran[0])
    ran += iterate(path, 2)[0].ran
    assert ran == [*steps_of(0), *steps_of(1), *steps_of(2)]


def test_training_that_was_stopped_without_a_checkpoint_begins_anew(path: Path, tmp_path: Path) -> None:
    model = tmp_path / "out" / "round-1" / "model"

    def stop(verb: str, settings: dict[str, Any]) -> int | None:
        if verb != "train":
            return None
        (model / "checkpoint-1").mkdir(parents=True)  # not whole
        (model / "model.safetensors").touch()
        return 1

    with pytest.raises(StepFailed, match="round-1: train ended with exit code 1"):
        iterate(path, 1, run=Played(stop))
    iterate(path, 1)
    assert not (model / "checkpoint-1").exists() and (model / "model.safetensors").read_text() == "weights"


def test_rounds_take_the_next_prompts_each_once(path: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {number}?"} for number in (0, 1, 0, 2, 3, 1, 4, 5, 6, 0)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--prompts_per_round=3", "--binarize.test_size=0"]
    iterate(path, 2, words)
    seen = [
        [record["id"] for record in read_records(tmp_path / "out" / f"round-{number}" / "responses")]
        for number in (1, 2)
    ]
    assert seen == [[f"Question {number}?" for number in taken] for taken in ((0, 1, 2), (3, 4, 5))]
    # nobody held out: nothing to evaluate the training on
    train = yaml.safe_load((tmp_path / "out" / "round-1" / "settings" / "train.yaml").read_text())
    assert train["eval_strategy"] == "no"
    with pytest.raises(ConfigError) as refused:
        iterate(path, 3, words)
    assert str(refused.value) == (
        f"prompts_per_round: 3 for --rounds 3 takes 9 prompts, and {tmp_path}/prompts.jsonl [train] has 7 different "
        "ones: 2 rounds are possible"
    )
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(ConfigError, match=r"generate.prompts: "):
        iterate(path, 2, words)


def test_max_prompts_bounds_what_rounds_take(path: Path) -> None:
    with pytest.raises(ConfigError, match="has 5 different ones: 1 rounds are possible"):
        iterate(path, 2, ["--prompts_per_round=3", "--generate.max_prompts=5"])


def test_weights_of_older_rounds(path: Path, tmp_path: Path) -> None:
    iterate(path, 2)
    weights = [tmp_path / "out" / f"round-{number}" / "model" / "model.safetensors" for number in (1, 2, 3)]
    assert weights[0].is_file() and weights[1].is_file()
    played, _ = iterate(path, 3, ["--keep_models=last"])
    assert [file.is_file() for file in weights] == [False, False, True]
    assert played.ran == steps_of(3) and iterate(path, 3, ["--keep_models=last"])[0].ran == []


def test_other_settings_are_refused(path: Path) -> None:
    iterate(path, 1)
    words = ["--train.per_device_train_batch_size=2", "--train.report_to=none", "--generate.batch_size=9"]
    assert iterate(path, 1, words)[0].ran == []
    changed = ["--train.learning_rate=2e-3", "--evaluate.max_prompts=2", "--prompts_per_round=6"]
    with pytest.raises(ConfigError) as refused:
        iterate(path, 1, changed)
    lines = str(refused.value).splitlines()
    assert "  train.learning_rate: 0.001 there, 0.002 now" in lines
    assert "  evaluate.max_prompts: null there, 2 now" in lines
    assert "  prompts_per_round: null there, 6 now" in lines


def test_settings_of_steps_that_no_round_has_taken_may_change(path: Path) -> None:
    fails = Played(lambda verb, _: 2 if verb == "train" else None)
    with pytest.raises(StepFailed, match="round-1: train ended"):
        iterate(path, 1, ["--train.learning_rate=9"], run=fails)
    for word in ("--generate.top_p=0.5", "--binarize.test_size=3", "--evaluate.max_prompts=2"):
        with pytest.raises(ConfigError, match="was made with other settings"):
            iterate(path, 1, [word])
    assert iterate(path, 1, ["--train.learning_rate=2e-3"])[0].ran == steps_of(1)[3:]
    with pytest.raises(ConfigError, match=r"train.learning_rate: 0.002 there, 0.003 now"):
        iterate(path, 2, ["--train.learning_rate=3e-3"])


def test_a_first_step_that_failed_is_mended(path: Path) -> None:
    """A wrong model name leaves nothing, so the right one goes on in the same folder."""
    with pytest.raises(StepFailed, match="round-0/evaluate: generate ended"):
        iterate(path, 1, run=Played(lambda *_: 2))
    with pytest.raises(StepFailed, match="round-0/evaluate: annotate ended"):
        iterate(path, 1, ["--generate.model_name_or_path=other/model"],
                run=Played(lambda verb, _: 2 if verb == "annotate" else None))  # fmt: skip
    with pytest.raises(ConfigError, match=r'generate.model_name_or_path: "other/model" there, "some/model" now'):
        iterate(path, 1)  # it has answered
    played, _ = iterate(path, 1, ["--generate.model_name_or_path=other/model"])
    assert played.ran == ["annotate evaluate", *steps_of(1)]


def test_what_cannot_go_round_is_refused_first(path: Path, tmp_path: Path) -> None:
    def refuse(words: Sequence[str], rounds: int = 2) -> str:
        played = Played()
        with pytest.raises(ConfigError) as refused:
            iterate(path, rounds, words, run=played)
        assert not played.commands
        return str(refused.value)

    assert refuse([], 0) == "--rounds 0: must be at least 1"
    assert "train: use_peft: true leaves an adapter, and the next round's training" in refuse(["--train.use_peft=true"])
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    assert "adapter is an adapter, and training needs a whole model" in refuse(
        [f"--generate.model_name_or_path={tmp_path}/adapter"]
    )
    plain = yaml.safe_load(path.read_text())
    del plain["generate"]["batch_size"], plain["generate"]["use_cpu"]
    path.write_text(yaml.safe_dump(plain))
    server = ["--generate.engine=server", "--generate.server_urls=[http://localhost:9/v1]"]
    assert "engine: server: the server would answer with its own model in every round" in refuse(server)


def test_what_transformers_refuses_is_found_first(path: Path, tmp_path: Path) -> None:
    words = ["--train.load_best_model_at_end=true", "--train.eval_strategy=no"]
    with pytest.raises(ConfigError, match=r"^train: transformers refuses these settings: --load_best_model_at_end"):
        run_iterate([str(path)], words, 1, launch_config=launch_config)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_all_rounds(path: Path, tmp_path: Path, capsys) -> None:
    iterate(path, 2, dry_run=True)
    said = capsys.readouterr().out
    heads = [line for line in said.splitlines() if not line.startswith(" ")]
    assert len(heads) == 14 and heads[2:4] == ["round-1: generate (to be run)", "round-1: annotate (to be run)"]
    assert f"model_name_or_path: {tmp_path}/out/round-1/model" in said and not (tmp_path / "out").exists()


def test_the_command_line(path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("simpo.onpolicy.iterate.run_iterate", lambda *given, **named: seen.append((given, named)))
    words = [str(path), "--rounds", "3", "--accelerate", "cpu", "--num_processes=2", "--generate.top_p", "0.9"]
    assert cli.main(["iterate", *words, "--dry-run"]) == 0
    ((given, named),) = seen
    assert given == ([str(path)], ["--generate.top_p=0.9"], 3)
    assert (named["launch"], named["dry_run"]) == (Launch("cpu", 2), True)
    with pytest.raises(SystemExit):
        cli.main(["iterate", str(path)])
    assert "the following arguments are required: --rounds" in capsys.readouterr().err
    assert cli.main(["iterate", str(path), "--rounds=1", "--num_processes=2"]) == 2


@pytest.mark.slow
def test_iterate_killed_at_random_moments_ends_with_the_same_weights(tiny_dir: str, tmp_path: Path) -> None:
    path = write_pipeline(tmp_path, tiny_dir, train={"save_strategy": "steps", "save_steps": 1})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(WORKER), "6", "1", str(path), str(whole), str(killed)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("killed\n") >= 3
    for number in (1, 2):
        pairs = [load_from_disk(str(folder / f"round-{number}" / "pairs")) for folder in (whole, killed)]
        assert [part.to_list() for part in pairs[0].values()] == [part.to_list() for part in pairs[1].values()]
        weights = [folder / f"round-{number}" / "model" / "model.safetensors" for folder in (whole, killed)]
        assert sha256(weights[0].read_bytes()).digest() == sha256(weights[1].read_bytes()).digest()
    tables = [json.loads((folder / "rounds.json").read_text()) for folder in (whole, killed)]
    assert tables[0] == tables[1] and len(tables[0]["rounds"]) == 3
