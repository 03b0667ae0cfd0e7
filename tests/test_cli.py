"""The command line: speed, the division of words, errors, launching, and the script of the published launch line."""

import argparse
import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import simpo
from simpo import cli
from simpo.cli import launch, train
from simpo.cli.words import Flag, split_overrides
from simpo.errors import ConfigError, DataError
from tests.launching import Calls

ROOT = Path(__file__).resolve().parent.parent


def simpo_process(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simpo.cli", *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "words",
    [("--help",), ("train", "--help"), ("sft", "--help"), ("sweep", "--help"), ("generate", "--help"), ("--version",)],
)
def test_help_answers_in_half_a_second(words: tuple[str, ...]) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        answer = simpo_process(*words)
        seconds.append(time.perf_counter() - start)
        assert answer.returncode == 0 and answer.stdout
    assert min(seconds) < 0.5


def test_nothing_heavy_is_imported_before_arguments_are_read() -> None:
    code = (
        "import sys, simpo, simpo.cli; simpo.cli._parser(); "
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets', 'yaml', 'pydantic') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_version() -> None:
    assert simpo_process("--version").stdout == f"simpo {simpo.__version__}\n"
    assert simpo.__version__ == "0.1.0"


def test_package_exports() -> None:
    from simpo.config import SimPOConfig

    assert simpo.SimPOConfig is SimPOConfig
    assert {"SimPOConfig", "SimPOTrainer", "PreferenceTrainer"} <= set(dir(simpo))
    with pytest.raises(AttributeError, match="nothing"):
        simpo.nothing  # noqa: B018


@pytest.mark.parametrize("words", [(), ("trian",), ("train",)])
def test_wrong_usage(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert "usage: simpo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "own", "overrides"),
    [
        ("a.yaml", ["a.yaml"], []),
        ("a.yaml b.yaml --beta=3", ["a.yaml", "b.yaml"], ["--beta=3"]),
        ("--beta 3 a.yaml --bf16 --dry-run", ["a.yaml", "--dry-run"], ["--beta=3", "--bf16=true"]),
        ("a.yaml --max_steps -1 --x=a=b", ["a.yaml"], ["--max_steps=-1", "--x=a=b"]),
        ("a.yaml --dry_run --overwrite", ["a.yaml", "--dry-run", "--overwrite"], []),
        ("--accelerate zero3 a.yaml", ["--accelerate=zero3", "a.yaml"], []),
        ("a.yaml --accelerate=cpu --num-processes 2", ["a.yaml", "--accelerate=cpu", "--num_processes=2"], []),
        ("--resume_from_checkpoint a.yaml", ["--resume_from_checkpoint=true", "a.yaml"], []),
        (
            "a.yaml --resume-from-checkpoint out/checkpoint-5",
            ["a.yaml", "--resume_from_checkpoint=out/checkpoint-5"],
            [],
        ),
        ("a.yaml --resume_from_checkpoint --beta=1", ["a.yaml", "--resume_from_checkpoint=true"], ["--beta=1"]),
        ("a.yaml -h", ["a.yaml", "-h"], []),
        ("--help a.yaml", ["--help", "a.yaml"], []),
    ],
)
def test_words_are_divided(words: str, own: list[str], overrides: list[str]) -> None:
    assert split_overrides(words.split(), train.FLAGS) == (own, overrides)


def test_an_option_of_several_words_ends_at_the_next() -> None:
    words = ["--models", "a", "-b", "--names", "x", "--models=c", "d", "--beta", "2"]
    own = ["--models=a", "--models=-b", "--names=x", "--models=c", "d"]
    assert split_overrides(words, {"--models": Flag("several"), "--names": Flag("several")}) == (own, ["--beta=2"])


@pytest.mark.parametrize("name", cli.VERBS)
def test_words_are_divided_as_they_are_parsed(name: str) -> None:
    """FLAGS say of every option of the verb's parser, and of no other, whether it takes a value."""
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    cli.VERBS[name].add(verbs)
    assert list(verbs.choices) == [name] and verbs.choices[name].get_default("run") == cli.VERBS[name].run
    options = {option: action for action in verbs.choices[name]._actions for option in action.option_strings}
    takes_a_value = {option: action.nargs != 0 for option, action in options.items()}
    flags = {option: flag.value != "none" for option, flag in cli.VERBS[name].FLAGS.items()}
    assert flags | {"-h": False, "--help": False} == takes_a_value


def test_train_passes_settings_on(config: str, calls: Calls) -> None:
    assert cli.main(["train", config, "--beta=3", "--dry-run", "--overwrite"]) == 0
    (call,) = calls
    assert call["settings"].training.beta == 3.0 and call["settings"].files == [Path(config)]
    assert call["dry_run"] is True and call["overwrite"] is True and call["resume_from_checkpoint"] is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--resume_from_checkpoint"], True),
        (["--resume_from_checkpoint=true"], True),
        (["--resume_from_checkpoint=false"], False),
        (["--resume_from_checkpoint", "out/checkpoint-5"], "out/checkpoint-5"),
    ],
)
def test_resume(config: str, calls: Calls, words: list[str], expected: object) -> None:
    assert cli.main(["train", config, *words]) == 0
    assert calls[0]["resume_from_checkpoint"] == expected


def test_resume_from_the_file(config: str, calls: Calls) -> None:
    with open(config, "a") as file:
        file.write("resume_from_checkpoint: out/checkpoint-5\n")
    cli.main(["train", config])
    cli.main(["train", config, "--resume_from_checkpoint=false"])
    assert [call["resume_from_checkpoint"] for call in calls] == ["out/checkpoint-5", False]


def test_errors_have_no_traceback(config: str, calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", config, "--bta=3"]) == 2
    streams = capsys.readouterr()
    assert streams.err == "error: command line: unknown setting 'bta'; did you mean 'beta'?\n"
    assert streams.out == "" and calls == []


def test_error_of_a_process() -> None:
    answer = simpo_process("train", "none.yaml")
    assert answer.returncode == 2
    assert answer.stderr == "error: settings file none.yaml does not exist; see training_configs/ for examples\n"


def test_other_processes_do_not_repeat_a_mistake_in_the_settings(
    config: str, calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert cli.main(["train", config, "--bta=3"]) == 2
    assert capsys.readouterr().err == ""

    def fail(*_: Any, **__: Any) -> None:
        raise DataError("pairs.jsonl: no such file")

    monkeypatch.setattr(sys.modules["simpo.run"], "run_training", fail)
    assert cli.main(["train", config]) == 2
    assert capsys.readouterr().err == "error (process 3): pairs.jsonl: no such file\n"


@pytest.fixture
def launched(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    monkeypatch.setattr("simpo.cli.supervise.supervise", lambda command, *_: commands.append(command))
    return commands


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one file for every name, and a package without any."""
    folder = tmp_path / "accelerate_configs"
    folder.mkdir()
    for name in launch.LAUNCH_CONFIGS.values():
        (folder / name).write_text("num_processes: 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "site-packages" / "simpo" / "cli" / "launch.py"))
    return folder


def test_launching(config: str, launched: list[list[str]], checkout: Path, calls: Calls) -> None:
    words = ["--accelerate", "zero3", "--beta", "3", "--dry-run", "--resume_from_checkpoint", "--num_processes=4"]
    assert cli.main(["train", config, *words]) == 0
    (command,) = launched
    assert command == [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(checkout / "deepspeed_zero3.yaml"), "--num_processes", "4"),
        *("-m", "simpo.cli", "train", config, "--dry-run", "--resume_from_checkpoint=true", "--beta=3"),
    ]
    assert calls == []


def test_launching_on_several_machines(config: str, launched: list[list[str]], checkout: Path) -> None:
    words = "--num_machines 4 --num_processes=32 --machine-rank 3 --main_process_ip 10.0.0.1 --main_process_port=1234"
    assert cli.main(["train", config, "--accelerate=zero3_nodes", *words.split(), "--log_dir", "logs"]) == 0
    assert launched[0][3:-4] == [
        *("--config_file", str(checkout / "deepspeed_zero3_nodes.yaml"), "--num_processes", "32"),
        *("--num_machines", "4", "--machine_rank", "3", "--main_process_ip", "10.0.0.1"),
        *("--main_process_port", "1234", "--log_dir", "logs", "--tee", "3"),
    ]
    assert launched[0][-4:] == ["-m", "simpo.cli", "train", config]


def test_checks_reach_the_run_and_the_launcher(
    config: str, launched: list[list[str]], checkout: Path, calls: Calls
) -> None:
    assert cli.main(["train", config]) == cli.main(["train", config, "--strict", "--no-audit"]) == 0
    assert [(call["strict"], call["audit"]) for call in calls] == [(False, True), (True, False)]
    assert cli.main(["train", config, "--strict", "--no-audit", "--no-report", "--accelerate", "cpu"]) == 0
    assert launched[0][-4:] == [config, "--no-audit", "--strict", "--no-report"]


def test_settings_are_checked_before_launching(
    config: str, launched: list[list[str]], checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", config, "--accelerate", "zero3", "--bta=3"]) == 2
    assert "unknown setting 'bta'" in capsys.readouterr().err and launched == []


@pytest.mark.parametrize("name", launch.LAUNCH_CONFIGS)
def test_launch_names(name: str, checkout: Path) -> None:
    assert launch.launch_config(name) == checkout / launch.LAUNCH_CONFIGS[name]


@pytest.mark.parametrize("name", launch.LAUNCH_CONFIGS)
def test_launch_files_of_the_checkout(name: str) -> None:
    path = launch.launch_config(name)
    assert path == ROOT / "accelerate_configs" / launch.LAUNCH_CONFIGS[name]
    assert "distributed_type" in yaml.safe_load(path.read_text())


def test_launch_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("num_processes: 1\n")
    assert launch.launch_config(str(path)) == path


def test_unknown_launch_name() -> None:
    with pytest.raises(ConfigError) as caught:
        launch.launch_config("zero9")
    assert "--accelerate zero9" in str(caught.value) and "zero2, zero3, zero3_nodes, fsdp2" in str(caught.value)


def test_launch_files_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "__file__", str(tmp_path / "site-packages" / "simpo" / "cli" / "launch.py"))
    with pytest.raises(ConfigError, match=r"deepspeed_zero3\.yaml was not found in .*run from a checkout"):
        launch.launch_config("zero3")


@pytest.mark.parametrize("option", ["--num_machines=2", "--machine_rank=0", "--main_process_ip=x", "--log_dir=logs"])
def test_options_of_a_launcher_need_one(config: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", config, option]) == 2
    assert f"{option.split('=')[0]} needs --accelerate" in capsys.readouterr().err


def test_launch_contradictions(
    config: str, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", config, "--num_processes=2"]) == 2
    assert "--num_processes needs --accelerate" in capsys.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert cli.main(["train", config, "--accelerate=cpu"]) == 2
    assert "inside `accelerate launch`" in capsys.readouterr().err and launched == []


def test_the_script_is_the_command(tmp_path: Path) -> None:
    """From any directory, without the package on the path."""
    answer = subprocess.run(
        [sys.executable, "-P", str(ROOT / "scripts" / "run_simpo.py"), "none.yaml", "--beta=3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stderr == "error: settings file none.yaml does not exist; see training_configs/ for examples\n"


@pytest.mark.parametrize("start", [("-m", "simpo.cli", "train"), ("scripts/run_simpo.py",)])
def test_accelerate_launch(start: tuple[str, ...], config: str) -> None:
    """Both ways to start reach the settings through the real launcher."""
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml")
    answer = subprocess.run(
        [*launch, *start, config, "--bta=3"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode != 0
    assert "error: command line: unknown setting 'bta'; did you mean 'beta'?" in answer.stderr


def test_execution_replaces_the_process(config: str) -> None:
    answer = simpo_process("train", config, "--accelerate", "cpu", "--beta", "high")
    assert answer.returncode == 2 and "--beta: high has the wrong type" in answer.stderr


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(number: int) -> Any:
        def run(*_: Any, **__: Any) -> None:
            raise OSError(number, os.strerror(number), "out/process.json")

        return run

    monkeypatch.setattr("simpo.onpolicy.pipeline.run_onpolicy", fail(errno.ENOSPC))
    assert cli.main(["onpolicy", "any.yaml"]) == 2
    assert capsys.readouterr().err == (
        "error: out/process.json: No space left on device; make room, then give the same command again\n"
    )
    monkeypatch.setattr("simpo.onpolicy.pipeline.run_onpolicy", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        cli.main(["onpolicy", "any.yaml"])
