"""The trainer: parity with the published implementation, metrics, adapters, resuming."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from simpo import PreferenceTrainer, SimPOTrainer
from simpo.errors import ConfigError, DataError, ModelError
from simpo.losses import PairLogps, PairLosses
from simpo.metrics import PAIR_METRICS, mean_logged_loss


def _logs(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("run", ["beta2", "beta10"])
def test_parity_with_the_published_implementation(golden, rows, tiny_dir, make_args, run, shared) -> None:
    expected = golden["runs"][run]
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate",
             "beta", "gamma_beta_ratio", "max_length", "max_prompt_length",
             "weight_decay", "seed", "max_grad_norm")  # fmt: skip
    args = make_args(
        total_train_batch_size=None, tokenization="paper", prefix_sharing=shared,
        **{name: expected["args"][name] for name in names},
    )  # fmt: skip
    trainer = SimPOTrainer(tiny_dir, args, rows, rows)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    keys = [f"{group}/{name}" for group in ("rewards", "logps") for name in ("chosen", "rejected")]
    keys += ["rewards/margins", "rewards/accuracies", "loss"]
    for ours, theirs in ((before, expected["eval_before"]), (after, expected["eval_after"])):
        for key in keys:
            assert ours[f"eval_{key}"] == pytest.approx(theirs[f"eval_{key}"], abs=1e-4), key
    assert len(_logs(trainer)) == len(expected["steps"]) == 12
    for ours, theirs in zip(_logs(trainer), expected["steps"], strict=True):
        for key in keys:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), key
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_raw_and_tokenised_rows_train_alike(rows, tiny_dir, make_args) -> None:
    raw = SimPOTrainer(tiny_dir, make_args(max_steps=2), rows)
    tokenised = SimPOTrainer(tiny_dir, make_args(max_steps=2), raw.train_dataset)
    assert raw.train_report is not None and raw.train_report.kept == 8 and tokenised.train_report is None
    raw.train(), tokenised.train()
    assert [entry["loss"] for entry in _logs(raw)] == [entry["loss"] for entry in _logs(tokenised)]


def test_evaluation_does_not_depend_on_the_batch(rows, tiny_dir, make_args) -> None:
    metrics = []
    for size in (1, 3, 8):
        trainer = SimPOTrainer(tiny_dir, make_args(per_device_eval_batch_size=size), eval_dataset=rows)
        metrics.append({key: value for key, value in trainer.evaluate().items() if "/" in key or key == "eval_loss"})
    assert len(metrics[0]) == len(PAIR_METRICS)
    for other in metrics[1:]:
        assert other == pytest.approx(metrics[0], abs=1e-5)


def test_compute_metrics_sees_pairs_in_order(rows, tiny_dir, make_args) -> None:
    seen = {}

    def compute(prediction):
        seen.update(prediction.predictions)
        return {"first_margin": float(prediction.predictions["rewards/margins"][0])}

    trainer = SimPOTrainer(
        tiny_dir, make_args(per_device_eval_batch_size=3), eval_dataset={"a": rows, "b": rows.select([5])},
        compute_metrics=compute,
    )  # fmt: skip
    metrics = trainer.evaluate()
    assert set(seen) == set(PAIR_METRICS)
    assert metrics["eval_b_first_margin"] == pytest.approx(seen["rewards/margins"][0])
    everything = trainer.predict(rows).predictions["rewards/margins"]
    assert everything.shape == (8,)
    assert everything[5] == pytest.approx(metrics["eval_b_first_margin"], abs=1e-5)
    assert everything[0] == pytest.approx(metrics["eval_a_first_margin"], abs=1e-5)


def test_sft_weight_adds_the_token_mean_of_the_step(rows, tiny_dir, make_args) -> None:
    trainer = SimPOTrainer(tiny_dir, make_args(max_steps=1, sft_weight=0.5), rows, rows)
    metrics = trainer.evaluate()
    results = trainer.predict(rows).predictions
    lengths = results["lengths/chosen"]
    nll = -(results["logps/chosen"] * lengths).sum() / lengths.sum()
    trainer.train()
    (entry,) = _logs(trainer)
    assert entry["preference_loss"] == pytest.approx(results["loss"].mean(), abs=1e-4)
    assert entry["loss"] == pytest.approx(results["loss"].mean() + 0.5 * nll, abs=1e-4)
    assert metrics["eval_loss"] == pytest.approx(entry["loss"], abs=1e-4)


def test_lora_trains_the_adapter_only(rows, tiny_dir, make_args, tmp_path) -> None:
    from peft import LoraConfig, PeftModel

    args = make_args(max_steps=3, learning_rate=1e-2, gradient_checkpointing=True, tokenization="paper")
    trainer = SimPOTrainer(tiny_dir, args, rows, peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"))
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    trainer.train()
    assert _logs(trainer)[-1]["loss"] < _logs(trainer)[0]["loss"]
    trainer.save_model(str(tmp_path / "adapter"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_dir
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_dir), tmp_path / "adapter")
    ids = torch.arange(10, 30)[None]
    trainer.model.eval()
    torch.testing.assert_close(again(input_ids=ids).logits, trainer.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_resume_gives_the_same_weights(rows, tiny_dir, make_args, tmp_path) -> None:
    options = {"num_train_epochs": 3, "total_train_batch_size": 3, "save_strategy": "steps", "save_steps": 4}
    whole = SimPOTrainer(tiny_dir, make_args(**options), rows)
    whole.train()
    assert whole.state.global_step == 9
    resumed = SimPOTrainer(tiny_dir, make_args(**options), rows)
    # the checkpoint lies in the middle of the second epoch: shuffle and position must both be found again
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_epochs_are_shuffled_anew(rows, tiny_dir, make_args) -> None:
    trainer = SimPOTrainer(tiny_dir, make_args(num_train_epochs=2, total_train_batch_size=4, learning_rate=0.0), rows)
    trainer.train()
    losses = [entry["loss"] for entry in _logs(trainer)]
    assert losses[0] + losses[1] == pytest.approx(losses[2] + losses[3], abs=1e-4)  # the same pairs in an epoch
    assert abs(losses[0] - losses[2]) > 1e-4  # in other steps


def test_an_objective_of_ones_own(rows, tiny_dir, make_args) -> None:
    def unlikely(logps: PairLogps) -> PairLosses:
        losses = (logps.chosen + logps.rejected) / 100
        return PairLosses(losses, logps.chosen.detach(), logps.rejected.detach())

    trainer = PreferenceTrainer(tiny_dir, make_args(max_steps=1), rows, objective=unlikely)
    trainer.train()
    assert _logs(trainer)[0]["loss"] < 0
    with pytest.raises(ConfigError, match="use PreferenceTrainer"):
        SimPOTrainer(tiny_dir, make_args(objective="dpo"), rows)


def test_a_list_of_rows_is_a_dataset(golden, tiny_dir, make_args) -> None:
    assert len(SimPOTrainer(tiny_dir, make_args(), golden["rows"]).train_dataset) == 8


def test_bad_calls_say_what_to_do(rows, tiny_dir, make_args, make_model, tiny_tokenizer) -> None:
    with pytest.raises(DataError, match=r"datasets\.Dataset"):
        SimPOTrainer(tiny_dir, make_args(), rows.to_iterable_dataset())
    with pytest.raises(DataError, match="train_dataset"):
        SimPOTrainer(tiny_dir, make_args()).train()
    with pytest.raises(DataError, match="eval_dataset"):
        SimPOTrainer(tiny_dir, make_args()).evaluate()
    with pytest.raises(ModelError, match="processing_class"):
        SimPOTrainer(make_model("llama"), make_args(), rows)
    with pytest.raises(ModelError, match="cannot load"):
        SimPOTrainer("no/such-model", make_args(), rows)
    with pytest.raises(ConfigError, match="adapter"):
        SimPOTrainer(tiny_dir, make_args(), rows, quantization_config=object())
    half = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="float32"):
        SimPOTrainer(half, make_args(), rows, processing_class=tiny_tokenizer)


def test_dropout_is_off_unless_asked_for(rows, tiny_dir, make_args) -> None:
    def losses(**settings) -> list[float]:
        model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32, attention_dropout=0.5)
        trainer = SimPOTrainer(model, make_args(max_steps=1, learning_rate=0.0, **settings), rows)
        trainer.train()
        return [entry["loss"] for entry in _logs(trainer)]

    assert losses() == losses(per_device_train_batch_size=1) == pytest.approx(losses(prefix_sharing=False), abs=1e-5)
    assert losses(disable_dropout=False) != pytest.approx(losses(), abs=1e-3)


def test_a_loss_that_is_no_number_stops_the_run(rows, tiny_dir, make_args) -> None:
    def broken(logps: PairLogps) -> PairLosses:
        return PairLosses(logps.chosen * float("nan"), logps.chosen.detach(), logps.rejected.detach())

    trainer = PreferenceTrainer(tiny_dir, make_args(), rows, objective=broken)
    with pytest.raises(ModelError, match="step 1"):
        trainer.train()


def test_numbers_of_numpy_can_be_logged(rows, tiny_dir, make_args) -> None:
    trainer = SimPOTrainer(
        tiny_dir, make_args(), eval_dataset=rows, compute_metrics=lambda p: {"m": p.predictions["loss"].max()}
    )
    assert type(trainer.evaluate()["eval_m"]) is float


def test_steps_that_cannot_be_filled(rows, tiny_dir, make_args) -> None:
    with pytest.raises(DataError, match="8 pairs do not fill one step of 9"):
        SimPOTrainer(tiny_dir, make_args(total_train_batch_size=9, dataloader_drop_last=True), rows).train()


def test_full_fine_tuning_keeps_float32_masters(tiny_dir, rows, make_args) -> None:
    trainer = SimPOTrainer(tiny_dir, make_args(bf16=True, model_init_kwargs={"dtype": "bfloat16"}, max_steps=2), rows)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    trainer.train()
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    exact = SimPOTrainer(tiny_dir, make_args(max_steps=2), rows)
    exact.train()
    # bf16 autocast computes the same thing, roughly
    assert _logs(trainer)[0]["loss"] == pytest.approx(_logs(exact)[0]["loss"], abs=0.05)
    assert _logs(trainer)[0]["loss"] != _logs(exact)[0]["loss"]


def test_the_mean_of_logged_losses_counts_steps() -> None:
    history = [{"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 9.0}, {"step": 5, "loss": 2.0}]
    assert mean_logged_loss(history, 0.0) == pytest.approx((2 * 1.0 + 3 * 2.0) / 5)
    assert mean_logged_loss([{"step": 3, "eval_loss": 9.0}], 0.25) == 0.25
