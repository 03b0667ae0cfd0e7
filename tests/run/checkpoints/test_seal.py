"""A checkpoint is whole or is passed over; nothing that is good is lost."""

import json
import os
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from simpo import cli
from simpo.errors import ModelError
from simpo.run.checkpoints import callback
from simpo.run.checkpoints.callback import CheckpointCallback, remove_checkpoint
from simpo.run.checkpoints.resume import check_identity, choose_checkpoint
from simpo.run.checkpoints.seal import FILES, IDENTITY, damages, seal
from simpo.run.folder import MANIFEST, checkpoints
from tests.test_main_process import two

NAMES = ("model.safetensors", "trainer_state.json", "global_step5/zero_pp_rank_1_mp_rank_00_optim_states.pt")


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    (tmp_path / MANIFEST).write_text(json.dumps({"status": "running"}))
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True)


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    for name in NAMES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(os.urandom(1000))
    seal(path, {"beta": 2.0})
    return path


def test_what_was_written_is_undamaged(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 5)
    assert set(json.loads((path / FILES).read_text())) == set(NAMES)
    assert damages(path) == []
    check_identity(path, {"beta": 2.0})
    (path / "notes.txt").write_text("added later")  # such as a converted checkpoint
    assert damages(path) == []
    for name in (FILES, IDENTITY):
        (path / name).unlink()
    assert damages(path) == []  # transformers' own, named by hand


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)


DAMAGES = [
    (lambda path: os.truncate(path / NAMES[0], 400), "model.safetensors has 400 bytes in place of 1,000"),
    (lambda path: flip(path / NAMES[0]), "model.safetensors holds other bytes than were written"),
    (lambda path: (path / NAMES[2]).unlink(), "zero_pp_rank_1_mp_rank_00_optim_states.pt is missing"),
    (lambda path: (path / FILES).unlink(), f"{FILES} cannot be read"),
    (lambda path: (path / FILES).write_text('{"model.saf'), f"{FILES} cannot be read"),
    (lambda path: (path / FILES).write_text('{"model.safetensors": 3}'), f"{FILES} cannot be read"),
    (lambda path: (path / FILES).write_text("{}"), f"{FILES} cannot be read"),
    (lambda path: (path / FILES).write_text("[]"), f"{FILES} cannot be read"),
    (lambda path: (path / IDENTITY).write_text('{"beta"'), f"{IDENTITY} cannot be read"),
    (lambda path: (path / IDENTITY).write_text(""), f"{IDENTITY} cannot be read"),
]


@pytest.mark.parametrize(("harm", "words"), DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_kept_aside(tmp_path: Path, args, harm, words) -> None:
    earlier, later = checkpoint(tmp_path, 4), checkpoint(tmp_path, 8)
    harm(later)
    assert choose_checkpoint(args, None, False, dry_run=True)[0] == earlier
    assert later.is_dir()  # a dry run changes nothing
    found, notes = choose_checkpoint(args, None, False, dry_run=False)
    assert found == earlier and words in notes[0] and "checkpoint-8 is damaged" in notes[0]
    assert not later.exists() and (tmp_path / "checkpoint-8.damaged" / NAMES[1]).is_file()
    assert choose_checkpoint(args, None, False, dry_run=False) == (earlier, [f"goes on from {earlier}"])


def test_no_undamaged_checkpoint_stops_before_anything_is_written(tmp_path: Path, args) -> None:
    only = checkpoint(tmp_path, 4)
    flip(only / NAMES[0])
    with pytest.raises(ModelError, match=r"checkpoint-4: model.safetensors holds other bytes .* --overwrite"):
        choose_checkpoint(args, None, False, dry_run=False)
    assert only.is_dir()  # for whoever has a copy of the file
    assert choose_checkpoint(args, None, False, dry_run=True)[1][0].startswith("! no undamaged checkpoint")


def test_a_checkpoint_by_name_is_not_replaced_by_another(tmp_path: Path, args) -> None:
    checkpoint(tmp_path, 4)
    named = checkpoint(tmp_path, 8)
    flip(named / NAMES[1])
    with pytest.raises(ModelError, match=r"checkpoint-8: trainer_state\.json holds other bytes"):
        choose_checkpoint(args, str(named), False, dry_run=False)


def test_a_checkpoint_that_is_being_removed_looks_cut_short(tmp_path: Path, monkeypatch) -> None:
    """A crash between the first file that goes and the last."""
    old, new = checkpoint(tmp_path, 4), checkpoint(tmp_path, 8)

    def crash(path: Path) -> None:
        (path / NAMES[0]).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(callback.shutil, "rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(old)
    assert checkpoints(tmp_path) == [new]


def test_what_an_earlier_attempt_began_to_write_goes(tmp_path: Path, args) -> None:
    whole, begun = checkpoint(tmp_path, 4), checkpoint(tmp_path, 8)
    (begun / IDENTITY).unlink()
    state = TrainerState(global_step=4, is_world_process_zero=True)
    keeper = CheckpointCallback({"beta": 2.0})
    keeper.on_train_begin(args, state, TrainerControl())
    assert whole.is_dir() and not begun.exists()


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(tmp_path: Path, args) -> None:
    path = checkpoint(tmp_path, 4)
    keeper, state = CheckpointCallback({"beta": 2.0}), TrainerState(global_step=4, is_world_process_zero=True)
    keeper.on_step_end(args, state, TrainerControl(should_save=False))
    assert checkpoints(tmp_path) == [path]
    keeper.on_step_end(args, state, TrainerControl(should_save=True))
    assert checkpoints(tmp_path) == []
    path.mkdir()
    (path / NAMES[1]).write_text("{}")
    assert checkpoints(tmp_path) == []
    keeper.on_save(args, state, TrainerControl())
    assert checkpoints(tmp_path) == [path] and damages(path) == []
    keeper.on_epoch_end(args, state, TrainerControl(should_save=True))
    assert checkpoints(tmp_path) == []


def test_nothing_of_an_earlier_checkpoint_is_left_in_one_that_is_written_again(tmp_path: Path, args) -> None:
    """A part of a process that there is no more would be taken for a part of the new one."""
    path = checkpoint(tmp_path, 4)
    keeper, state = CheckpointCallback({"beta": 2.0}), TrainerState(global_step=4, is_world_process_zero=True)
    keeper.on_step_end(args, state, TrainerControl(should_save=True))
    assert not path.exists()


def test_a_checkpoint_that_was_being_removed_goes_with_the_next_start(tmp_path: Path, args, monkeypatch) -> None:
    old, new = checkpoint(tmp_path, 4), checkpoint(tmp_path, 8)
    with monkeypatch.context() as patch:
        patch.setattr(callback.shutil, "rmtree", lambda path: (path / NAMES[0]).unlink())  # and killed
        remove_checkpoint(old)
    CheckpointCallback({"beta": 2.0}).on_train_begin(
        args, TrainerState(global_step=8, is_world_process_zero=True), TrainerControl()
    )
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, new.name}


def test_a_run_that_went_back_keeps_what_it_writes(tmp_path: Path, args) -> None:
    """The limit first takes the later checkpoints, of the attempt that it went back behind."""
    for step in (4, 8, 12):
        checkpoint(tmp_path, step)
    keeper, new = CheckpointCallback({"beta": 2.0}, limit=2), checkpoint(tmp_path, 6)
    keeper.on_save(args, TrainerState(global_step=6, is_world_process_zero=True), TrainerControl())
    assert checkpoints(tmp_path) == [tmp_path / "checkpoint-4", new]


def test_what_was_set_aside_twice_is_no_checkpoint(tmp_path: Path, args) -> None:
    earlier = checkpoint(tmp_path, 4)
    for _ in range(2):
        flip(checkpoint(tmp_path, 8) / NAMES[0])
        assert choose_checkpoint(args, None, False, dry_run=False)[0] == earlier
    assert checkpoints(tmp_path) == [earlier] and (tmp_path / "checkpoint-8.damaged-2").is_dir()


@pytest.mark.multiprocess
def test_all_go_on_from_the_checkpoint_that_the_main_process_finds(tmp_path: Path) -> None:
    """A network disk may show another machine the folder of some time ago."""
    for rank, steps in ((0, (4, 8)), (1, (4,))):
        (tmp_path / f"disk{rank}").mkdir()
        (tmp_path / f"disk{rank}" / MANIFEST).write_text(json.dumps({"status": "running"}))
        for step in steps:
            checkpoint(tmp_path / f"disk{rank}", step)

    def choose() -> str:
        folder = tmp_path / f"disk{os.environ['RANK']}"
        found, _ = choose_checkpoint(TrainingArguments(output_dir=str(folder), use_cpu=True), None, False, dry_run=True)
        return str(found)

    assert two(choose, tmp_path) == [str(tmp_path / "disk0" / "checkpoint-8")] * 2


def test_a_run_passes_over_a_damaged_checkpoint_and_says_so(make_config, tmp_path: Path, capsys) -> None:
    config = str(make_config(save_strategy="steps", save_steps=1))
    assert cli.main(["train", config]) == 0
    out = tmp_path / "out"
    whole = (out / "model.safetensors").read_bytes()
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | {"status": "running"}))  # as a kill in the evaluation leaves it
    flip(out / "checkpoint-3" / "model.safetensors")
    capsys.readouterr()
    assert cli.main(["train", config]) == 0
    printed = capsys.readouterr().out
    assert "checkpoint-3 is damaged (model.safetensors holds other bytes" in printed
    assert "Going on from" in printed and "checkpoint-2" in printed
    assert (out / "model.safetensors").read_bytes() == whole and (out / "checkpoint-3.damaged").is_dir()
    assert damages(out / "checkpoint-3") == []
