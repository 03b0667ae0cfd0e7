"""Losses and gradients that are not finite: found before the update, and the weights kept."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from simpo.errors import ModelError
from simpo.losses import PairLogps, PairLosses, simpo_loss
from tests.monitor.conftest import preference_pairs

SETTINGS = {"total_train_batch_size": 8, "per_device_train_batch_size": 2, "monitor": "off"}
BAD_LENGTH = 20
PAIRS = preference_pairs(40)
PAIRS[23] = PAIRS[23] | {"chosen_ids": [21, *PAIRS[23]["chosen_ids"]] + [22] * 20}
PAIRS[23]["chosen_ids"] = PAIRS[23]["chosen_ids"][:BAD_LENGTH]


def bad(logps: PairLogps) -> torch.Tensor:
    """[B] which pair is row 23."""
    return logps.chosen_lengths == BAD_LENGTH


def nan_loss(logps: PairLogps) -> PairLosses:
    results = simpo_loss(logps)
    return results._replace(losses=results.losses.masked_fill(bad(logps), torch.nan))


class NanGradient(torch.autograd.Function):
    """Forward nothing, backward NaN."""

    @staticmethod
    def forward(_, values):
        return values.clone()

    @staticmethod
    def backward(_, gradients):
        return torch.where(gradients == 0, 0.0, torch.nan)


def nan_gradient(logps: PairLogps) -> PairLosses:
    results = simpo_loss(logps)
    losses = torch.where(bad(logps), NanGradient.apply(results.losses), results.losses)
    return results._replace(losses=losses)


class Watch(TrainerCallback):
    """The weights when the last step began."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def on_step_begin(self, *_, model, **__) -> None:
        """Called by transformers."""
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}


def stopped(trainer) -> tuple[str, dict[str, torch.Tensor]]:
    watch = Watch()
    trainer.add_callback(watch)
    with pytest.raises(ModelError) as error:
        trainer.train()
    return str(error.value), watch.weights


@pytest.mark.parametrize("objective", [nan_loss, nan_gradient])
def test_the_weights_before_the_step_are_kept(make_trainer, tmp_path, objective) -> None:
    trainer = make_trainer(PAIRS, own_objective=objective, **SETTINGS)
    text, before = stopped(trainer)
    step = trainer.state.global_step
    assert step > 0  # some steps were sound
    kept = load_file(tmp_path / "out" / f"checkpoint-{step}" / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in kept.items())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert f"step {step + 1} " in text and f"checkpoint-{step}" in text and "model_name_or_path" in text


def test_the_pair_is_named(make_trainer) -> None:
    trainer = make_trainer(PAIRS, own_objective=nan_loss, **SETTINGS)
    trainer.name_row = lambda row: f"data.jsonl row {row + 100}"
    text, _ = stopped(trainer)
    assert "loss of 1 of the 8 pairs" in text
    assert f'data.jsonl row 123: "t{PAIRS[23]["prompt_ids"][1]} t10 ..." (loss nan; summed log-probs: chosen -' in text


def test_a_reference_column_that_is_nan(make_trainer) -> None:
    """As data bring it; no column `row` means the place in the data."""
    rows = [pair | {"ref_chosen": -20.0, "ref_rejected": -20.0} for pair in PAIRS]
    rows[5]["ref_chosen"] = float("nan")
    text, _ = stopped(make_trainer(rows, objective="dpo", **SETTINGS))
    assert "row 5: " in text and "ref_chosen" in text


def test_the_run_goes_on_from_what_was_kept(make_trainer, tmp_path) -> None:
    """Also with save_strategy: no; once mended, it ends where a sound run ends."""
    trainer = make_trainer(PAIRS, own_objective=nan_loss, **SETTINGS)
    stopped(trainer)
    mended = make_trainer(PAIRS, **SETTINGS)
    mended.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{trainer.state.global_step}"))
    sound = make_trainer(PAIRS, **SETTINGS)
    sound.train()
    for ours, theirs in zip(mended.model.parameters(), sound.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_that_are_lost_are_not_kept(make_trainer, tmp_path) -> None:
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_) -> None:
            """Called by transformers."""
            with torch.no_grad():
                next(model.parameters()).fill_(torch.nan)

    trainer = make_trainer(PAIRS, **SETTINGS)
    trainer.add_callback(Break())
    with pytest.raises(ModelError, match="the weights hold numbers that are not finite at step 1"):
        trainer.train()
    assert not (tmp_path / "out" / "checkpoint-1").exists()


def test_a_checkpoint_that_is_there_is_not_written_again(make_trainer, tmp_path) -> None:
    trainer = make_trainer(PAIRS, own_objective=nan_loss, save_strategy="steps", save_steps=1, **SETTINGS)
    times = {}

    class Times(TrainerCallback):
        def on_save(self, args, state, control, **_) -> None:
            """Called by transformers."""
            times[state.global_step] = times.get(state.global_step, 0) + 1

    trainer.add_callback(Times())
    stopped(trainer)
    assert times[trainer.state.global_step] == 1


def test_a_checkpoint_of_an_earlier_run_is_not_taken_for_this_one(make_trainer, tmp_path) -> None:
    """Trainers do not mind a folder that holds something."""
    kept = []
    for rate in (1e-4, 1e-3):
        options = {"learning_rate": rate, "data_seed": 2, "warmup_steps": 0, **SETTINGS}
        trainer = make_trainer(PAIRS, own_objective=nan_loss, **options)
        stopped(trainer)
        path = tmp_path / "out" / f"checkpoint-{trainer.state.global_step}" / "model.safetensors"
        kept.append((load_file(path), trainer.model.state_dict()))
    assert trainer.state.global_step > 0
    assert not torch.equal(*(saved["model.layers.0.mlp.up_proj.weight"] for saved, _ in kept))
    for saved, own in kept:
        assert all(torch.equal(values, own[name]) for name, values in saved.items())
