"""Runs that go wrong on purpose, each with the warning that it must raise; and one that goes well."""

import random

import pytest

from simpo.errors import ModelError
from tests.monitor.conftest import preference_pairs

HELD_OUT = preference_pairs(64, seed=99)
SLOW = {"learning_rate": 3e-4, "total_train_batch_size": 32, "logging_steps": 2}  # what works with this model


def shuffled(pairs):
    """Labels by the toss of a coin."""
    rng = random.Random(3)
    swap = {"prompt_ids": "prompt_ids", "chosen_ids": "rejected_ids", "rejected_ids": "chosen_ids"}
    return [{key: pair[swap[key]] for key in pair} if rng.random() < 0.5 else pair for pair in pairs]


def test_a_sound_run_raises_nothing(make_trainer, warnings_of) -> None:
    trainer = make_trainer(preference_pairs(1280), HELD_OUT, **SLOW)
    trainer.train()
    assert warnings_of() == {}
    (first, *_, last) = [
        entry["monitor/accuracy"] for entry in trainer.state.log_history if "monitor/accuracy" in entry
    ]
    assert last > first + 0.1  # it did learn


def test_a_learning_rate_that_is_100_times_too_large(make_trainer, warnings_of, capfd, tmp_path) -> None:
    trainer = make_trainer(preference_pairs(640), HELD_OUT, **SLOW | {"learning_rate": 3e-2, "monitor": "stop"})
    with pytest.raises(ModelError, match=r"(?s)monitor: stop ends it at step \d+:.*chosen_falls.*checkpoint-"):
        trainer.train()
    assert warnings_of()["chosen_falls"] == "stop"
    assert trainer.state.global_step < 20  # of 20 in all
    assert (tmp_path / "out" / f"checkpoint-{trainer.state.global_step}" / "model.safetensors").is_file()


def test_the_same_run_goes_on_where_it_is_only_to_warn(make_trainer, warnings_of) -> None:
    trainer = make_trainer(preference_pairs(640), HELD_OUT, **SLOW | {"learning_rate": 3e-2})
    trainer.train()
    assert warnings_of()["chosen_falls"] == "stop" and trainer.state.global_step == 20


def test_shuffled_labels(make_trainer, warnings_of) -> None:
    make_trainer(shuffled(preference_pairs(1280)), HELD_OUT, **SLOW).train()
    assert warnings_of() == {"at_chance": "warn"}


def test_a_model_that_forgets_to_end(make_trainer, warnings_of) -> None:
    """Chosen responses lack their end, rejected ones have it; the held-out pairs are as they should be."""
    rate = {"learning_rate": 6e-4}
    make_trainer(preference_pairs(1280, chosen_ends=False), HELD_OUT, **SLOW | rate).train()
    found = warnings_of()
    assert "end_forgotten" in found and found["stops_no_more"] == "warn"


def test_the_same_data_in_train_and_test(make_trainer, warnings_of) -> None:
    """Random labels that are learned by heart, and found again in the test."""
    different = {pair["prompt_ids"][1]: pair for pair in preference_pairs(600)}  # contradictions cannot be learned
    pairs = shuffled([*different.values()][:64])
    rate = {"learning_rate": 1e-3, "num_train_epochs": 30, "total_train_batch_size": 16}
    make_trainer(pairs, pairs, **SLOW | rate).train()
    assert warnings_of()["saturated"] == "warn"
