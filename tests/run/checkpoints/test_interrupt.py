"""Signals of schedulers: save, stop, exit with 75; the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simpo import cli
from simpo.errors import Interrupted
from simpo.run import interrupt, run_training
from simpo.run.interrupt import command_again, interruptible
from simpo.run.logfile import LogFile
from simpo.settings import read_settings
from simpo.trainer import PreferenceTrainer
from tests.launching import environment


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops(make_config, tmp_path, monkeypatch, capsys, number) -> None:
    run_training(read_settings(make_config(output_dir=str(tmp_path / "whole"))))
    on_log, sent = LogFile.on_log, []

    def log(self, args, state, control, **kwargs):
        on_log(self, args, state, control, **kwargs)
        if state.global_step == 2 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(LogFile, "on_log", log)
    before, out = signal.getsignal(number), tmp_path / "out"
    config = str(make_config(eval_strategy="steps", eval_steps=1))
    assert cli.main(["train", config]) == 75
    assert f"stopped by {number.name} after step 3" in capsys.readouterr().err  # it came when step 2 had ended
    assert json.loads((out / "run_manifest.json").read_text())["status"] == "interrupted"
    assert (out / "checkpoint-3" / "run_identity.json").is_file() and not (out / "model.safetensors").exists()
    assert signal.getsignal(number) == before
    assert cli.main(["train", config]) == 0
    assert "Going on from" in capsys.readouterr().out and same_weights(out, tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines() if '"grad_norm"' in line]
    assert steps == sorted(set(steps))
    losses = [json.loads((run / "all_results.json").read_text())["train_loss"] for run in (out, tmp_path / "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # of all steps, not of those since the last start


def _evaluate(monkeypatch: pytest.MonkeyPatch, send) -> None:
    evaluate = PreferenceTrainer.evaluate
    monkeypatch.setattr(PreferenceTrainer, "evaluate", lambda *args, **named: send() or evaluate(*args, **named))


def _load(monkeypatch: pytest.MonkeyPatch, send) -> None:
    loader = PreferenceTrainer.get_train_dataloader
    monkeypatch.setattr(PreferenceTrainer, "get_train_dataloader", lambda self: send() or loader(self))


def _end(monkeypatch: pytest.MonkeyPatch, send) -> None:
    on_log = LogFile.on_log

    def log(self, args, state, control, logs=None, **named):
        on_log(self, args, state, control, logs=logs, **named)
        if "train_loss" in logs:
            send()

    monkeypatch.setattr(LogFile, "on_log", log)


@pytest.mark.parametrize("at", [_load, _end, _evaluate])
def test_a_signal_outside_of_the_steps_ends_the_run_at_once(make_config, tmp_path, monkeypatch, capsys, at) -> None:
    """And the manifest says so: a launcher's parent has no other word of it."""
    sent = []

    def send() -> None:
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    at(monkeypatch, send)
    config = str(make_config(save_strategy="epoch"))
    assert cli.main(["train", config, "--overwrite"]) == 75
    said = "stopped by SIGTERM; the same command without --overwrite goes on with this run"
    assert said in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "run_manifest.json").read_text())["status"] == "interrupted"
    assert cli.main(["train", config]) == 0
    assert ("Going on from" in capsys.readouterr().out) == (at is not _load)
    assert json.loads((tmp_path / "out" / "run_manifest.json").read_text())["status"] == "finished"


def test_more_signals_do_not_disturb_the_leaving(tmp_path, monkeypatch) -> None:
    (tmp_path / "run_manifest.json").write_text(json.dumps({"status": "running"}))
    write = interrupt.note_interruption

    def disturbed(folder) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        write(folder)

    monkeypatch.setattr(interrupt, "note_interruption", disturbed)
    with (
        pytest.raises(Interrupted, match="stopped by SIGTERM"),
        interruptible() as interruption,
        interruption.noted_in(str(tmp_path)),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
    assert json.loads((tmp_path / "run_manifest.json").read_text())["status"] == "interrupted"


def test_a_finished_run_stays_finished(tmp_path) -> None:
    for status in ("finished", None):
        if status:
            (tmp_path / "run_manifest.json").write_text(json.dumps({"status": status}))
        else:
            (tmp_path / "run_manifest.json").unlink()
        with pytest.raises(Interrupted), interruptible() as interruption, interruption.noted_in(str(tmp_path)):
            os.kill(os.getpid(), signal.SIGTERM)
        assert not status or json.loads((tmp_path / "run_manifest.json").read_text())["status"] == status
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_loads_no_best_model(make_config, tmp_path, monkeypatch) -> None:
    on_log, loaded = LogFile.on_log, []

    def log(self, args, state, control, **named):
        on_log(self, args, state, control, **named)
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LogFile, "on_log", log)
    monkeypatch.setattr(PreferenceTrainer, "_load_best_model", lambda self: loaded.append(True))
    steps = dict.fromkeys(("eval_strategy", "save_strategy"), "steps") | dict.fromkeys(("eval_steps", "save_steps"), 1)
    settings = read_settings(make_config(load_best_model_at_end=True, **steps))
    with pytest.raises(Interrupted, match="after step 2"):
        run_training(settings)
    assert not loaded and settings.training.load_best_model_at_end is True


def test_a_stop_within_an_epoch_is_not_its_end(make_config, tmp_path, monkeypatch) -> None:
    """With `epoch` strategies: no evaluation follows, and the only checkpoint is not written a second time."""
    on_log, save, saved = LogFile.on_log, PreferenceTrainer._save_checkpoint, []

    def log(self, args, state, control, **named):
        on_log(self, args, state, control, **named)
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def counted(self, *args, **named):
        saved.append(self.state.global_step)
        save(self, *args, **named)

    monkeypatch.setattr(LogFile, "on_log", log)
    monkeypatch.setattr(PreferenceTrainer, "_save_checkpoint", counted)
    epochs = dict.fromkeys(("eval_strategy", "save_strategy"), "epoch")
    with pytest.raises(Interrupted, match="after step 2"):
        run_training(read_settings(make_config(save_total_limit=1, **epochs)))
    assert saved == [2]
    history = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert not any("eval_loss" in entry for entry in history)


def test_an_interrupted_run_is_not_looked_at_once_more(make_config, tmp_path, monkeypatch) -> None:
    """The monitors look where they would have without the signal, and the run leaves with its checkpoint at once."""
    on_log, sent = LogFile.on_log, []

    def log(self, args, state, control, **named):
        on_log(self, args, state, control, **named)
        if state.global_step == 1 and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    def looks() -> list[int]:
        lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
        return [line["step"] for line in lines if "monitor/logps/chosen" in line]

    monkeypatch.setattr(LogFile, "on_log", log)
    rarely = {"monitor": "warn", "monitor_prompts": 0, "max_steps": 6, "eval_strategy": "steps", "eval_steps": 6}
    config = str(make_config(num_train_epochs=2, **rarely))
    assert cli.main(["train", config]) == 75
    assert (tmp_path / "out" / "checkpoint-2").is_dir() and looks() == [0]
    assert cli.main(["train", config]) == 0
    assert looks() == [0, 6]


def test_what_goes_on_with_a_run() -> None:
    assert command_again(False, None) == command_again(False, True) == "the same command"
    assert command_again(True, None) == "the same command without --overwrite"
    assert command_again(True, "out/checkpoint-5").endswith("without --overwrite and --resume_from_checkpoint")


def test_before_the_first_step_there_is_nothing_to_wait_for() -> None:
    with pytest.raises(Interrupted, match="stopped by SIGUSR1"), interruptible():
        os.kill(os.getpid(), signal.SIGUSR1)


def test_workers_of_loaders_are_left_alone() -> None:
    with interruptible():
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.multiprocess
def test_a_signal_to_one_of_two_processes_stops_both(make_config, tmp_path) -> None:
    """And a signal to torchrun, which passes it on where it is told to."""
    config = make_config(num_train_epochs=60)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "simpo.cli", "train", str(config)]
    extra = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}
    log = tmp_path / "out" / "log.jsonl"
    reached = 0
    for to_launcher in (False, True):
        with (tmp_path / "printed").open("w") as printed:
            process = subprocess.Popen(command, env=environment() | extra, stdout=printed, stderr=subprocess.STDOUT)
            while not log.exists() or len(log.read_text().splitlines()) <= reached + 2:
                assert process.poll() is None, (tmp_path / "printed").read_text()
                time.sleep(0.02)
            os.kill(process.pid if to_launcher else worker_of(process.pid), signal.SIGUSR1)
            assert process.wait(timeout=120) != 0
        assert json.loads((tmp_path / "out" / "run_manifest.json").read_text())["status"] == "interrupted"
        step = max(int(path.parent.name[11:]) for path in (tmp_path / "out").glob("checkpoint-*/run_identity.json"))
        assert reached < step < 180
        reached = len(log.read_text().splitlines())
    assert "stopped by SIGUSR1 after step" in (tmp_path / "printed").read_text()


def worker_of(launcher: int) -> int:
    import psutil

    return psutil.Process(launcher).children()[-1].pid
