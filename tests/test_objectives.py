"""The registry of objectives, and that a new one needs no more than docs/objectives.md says."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simpo import PreferenceTrainer
from simpo.config import PreferenceConfig
from simpo.errors import ConfigError
from simpo.losses import PairLogps, PairLosses, dpo_loss, simpo_loss
from simpo.objectives import OBJECTIVES, ObjectiveSpec, all_knobs
from simpo.settings import read_settings

PAIR = PairLogps(*(torch.tensor([value]) for value in (-10.0, -24.0, 10.0, 12.0, -12.0, -23.0, 0.5)))


def exponential_loss(logps: PairLogps, *, beta: float = 1.0, delta: float = 0.5) -> PairLosses:
    """exp(delta - beta (log pi(w)/|w| - log pi(l)/|l|)), the eleventh objective of docs/objectives.md."""
    chosen, rejected = logps.chosen / logps.chosen_lengths, logps.rejected / logps.rejected_lengths
    losses = torch.exp(delta - beta * (chosen - rejected))
    return PairLosses(losses, beta * chosen.detach(), beta * rejected.detach())


def relative_loss(logps: PairLogps, *, beta: float = 0.1) -> PairLosses:
    """A new objective with a reference: the logistic loss on the chosen response's log-ratio alone."""
    assert logps.ref_chosen is not None and logps.ref_rejected is not None
    chosen, rejected = beta * (logps.chosen - logps.ref_chosen), beta * (logps.rejected - logps.ref_rejected)
    return PairLosses(-F.logsigmoid(chosen), chosen.detach(), rejected.detach())


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "exponential", ObjectiveSpec("Exponential", "2405.14734", exponential_loss))
    monkeypatch.setitem(OBJECTIVES, "relative", ObjectiveSpec("Relative", "2305.18290", relative_loss, reference=True))


@pytest.fixture
def make_run(golden: Any, tiny_dir: str, tmp_path: Any) -> Callable[..., Any]:
    """make_run("line of YAML", ...) -> settings of a short run of the tiny model, read from a file."""

    def make(*lines: str) -> Any:
        config = tmp_path / "run.yaml"
        shared = (
            f"model_name_or_path: {tiny_dir}", "dataset_mixer: {unused.jsonl: 1.0}", f"output_dir: {tmp_path / 'out'}",
            f"reference_cache: {tmp_path / 'reference'}", "total_train_batch_size: 8", "max_steps: 1",
            "learning_rate: 1e-3", "warmup_steps: 0", "max_length: 1024", "max_prompt_length: 800", "logging_steps: 1",
            "save_strategy: 'no'", "use_cpu: true", "bf16: false", "disable_tqdm: true",
        )  # fmt: skip
        config.write_text("\n".join([*shared, *lines]) + "\n")
        return read_settings(config)

    return make


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_says_what_it_uses(name: str) -> None:
    spec = OBJECTIVES[name]
    own = {field.name for field in fields(PreferenceConfig)}
    assert spec.knobs and set(spec.knobs) <= own
    assert all(isinstance(default, bool | float | str) for default in spec.knobs.values())
    assert spec.loss.__doc__ and spec.paper in spec.loss.__doc__ and spec.title in spec.loss.__doc__
    assert spec.reference or not spec.kl


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_reference_is_needed_where_the_registry_says_so(name: str) -> None:
    spec = OBJECTIVES[name]
    bare = PairLogps(*PAIR[:4])
    if spec.reference:
        with pytest.raises(ValueError, match=r"initial policy|KL"):
            spec.loss(bare)
    else:
        assert spec.loss(bare).losses.shape == (1,)
    assert spec.loss(PAIR).losses.isfinite().all()


def test_binding_takes_the_settings_that_are_used_and_set() -> None:
    values = {"beta": 0.5, "tau": 3.0, "label_smoothing": None, "length_normalization": None}
    expected = dpo_loss(PAIR, beta=0.5).losses
    assert torch.equal(OBJECTIVES["dpo"].bind(values)(PAIR).losses, expected)
    assert torch.equal(OBJECTIVES["simpo"].bind({})(PAIR).losses, simpo_loss(PAIR).losses)


def test_a_new_objective_by_name(registered: None, make_run: Callable[..., Any], rows: Any, tiny_dir: str) -> None:
    run = make_run("objective: exponential", "delta: 0.25")
    assert run.training.objective_settings == {"beta": 1.0, "delta": 0.25}
    trainer = PreferenceTrainer(tiny_dir, run.training, rows, rows)
    before = trainer.predict(rows).predictions
    expected = torch.exp(0.25 - torch.tensor(before["rewards/margins"]))
    assert torch.tensor(before["loss"]).allclose(expected, atol=1e-5)
    trainer.train()
    assert trainer.state.global_step == 1
    assert trainer.evaluate()["eval_loss"] < before["loss"].mean()


def test_a_new_objective_with_a_reference(
    registered: None, make_run: Callable[..., Any], rows: Any, tiny_dir: str, tmp_path: Any
) -> None:
    trainer = PreferenceTrainer(tiny_dir, make_run("objective: relative").training, rows)
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["loss"] == pytest.approx(float(-F.logsigmoid(Tensor([0.0]))), abs=1e-5)  # the policy is its reference
    assert list((tmp_path / "reference").rglob("*.safetensors"))


def test_settings_of_another_objective_are_refused(registered: None, make_run: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="tau is not used by objective: exponential, which has beta, delta"):
        make_run("objective: exponential", "tau: 0.1")


def test_what_was_registered_is_gone(make_run: Callable[..., Any]) -> None:
    assert {"exponential", "relative"} & set(OBJECTIVES) == set()
    assert "delta" in all_knobs()
    with pytest.raises(ConfigError, match="'exponential' is unknown; write one of simpo, dpo"):
        make_run("objective: exponential")
