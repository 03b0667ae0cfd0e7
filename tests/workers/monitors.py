"""Train a tiny model with monitors, or with a pair whose loss is NaN, under whatever engine launched this file.

Usage: monitors.py OUT.json KEY=VALUE ...   (settings of PreferenceConfig, and `broken`, as JSON values)
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from trajectory import engine_of, pairs, tokenizer_stub
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, set_seed

from simpo import PreferenceConfig, PreferenceTrainer
from simpo.errors import ModelError
from simpo.losses import PairLogps, PairLosses, simpo_loss

BROKEN_ROW, BROKEN_LENGTH = 30, 29  # no other chosen response is as long
SHAPE = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def rows(count: int):
    """Pairs of which one is known by its length."""
    data = [dict(row) for row in pairs(count)]
    data[BROKEN_ROW]["chosen_ids"] = [3 + at for at in range(BROKEN_LENGTH)]
    return data


def broken_objective(logps: PairLogps) -> PairLosses:
    """SimPO, but the loss of one pair is NaN."""
    results = simpo_loss(logps)
    bad = (logps.chosen_lengths == BROKEN_LENGTH).to(results.losses.dtype)
    return results._replace(losses=results.losses + torch.where(bad > 0, torch.nan, 0.0) * bad.clamp(min=1))


class Weights(TrainerCallback):
    """Whole weights at the start of each step, on the first process."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer, self.state = trainer, {}

    def on_step_begin(self, *_, **__) -> None:
        """Every process must take part."""
        state = self.trainer.accelerator.get_state_dict(self.trainer.model_wrapped)
        self.state = {name: value.detach().clone().cpu() for name, value in state.items()} if state else {}


def build(out: str, options: dict, *, broken: bool) -> PreferenceTrainer:
    """The same model and data each time."""
    args = PreferenceConfig(
        **{
            "output_dir": out + ".run", "learning_rate": 3e-3, "warmup_steps": 2, "logging_steps": 1,
            "total_train_batch_size": 8, "per_device_train_batch_size": 2, "save_strategy": "no", "use_cpu": True,
            "bf16": False, "disable_tqdm": True, "monitor_pairs": 9, "monitor_prompts": 3, "monitor_max_new_tokens": 8,
        } | options
    )  # fmt: skip
    set_seed(2)
    model = LlamaForCausalLM(
        LlamaConfig(**SHAPE, num_attention_heads=4, num_key_value_heads=2, eos_token_id=2, attention_dropout=0.1)
    )
    objective = broken_objective if broken else None
    return PreferenceTrainer(model, args, rows(43), pairs(13), processing_class=tokenizer_stub(), objective=objective)


def main() -> None:
    """Train and report."""
    out, settings = sys.argv[1], dict(item.split("=", 1) for item in sys.argv[2:])
    options = {key: json.loads(value) for key, value in settings.items()}
    broken = options.pop("broken", False)
    resume = options.pop("resume", False)
    trainer = build(out, options, broken=broken)
    weights = Weights(trainer)
    trainer.add_callback(weights)
    report = {"error": ""}
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    except ModelError as error:
        report["error"] = str(error)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    report |= {"engine": engine_of(trainer), "step": trainer.state.global_step}
    if trainer.is_world_process_zero():
        flat = b"".join(state[name].detach().float().cpu().numpy().tobytes() for name in sorted(state))
        report["weights"] = hashlib.sha256(flat).hexdigest()
        report["logs"] = trainer.state.log_history
        kept = Path(out + ".run", f"checkpoint-{trainer.state.global_step}", "model.safetensors")
        if report["error"] and kept.is_file():
            saved = load_file(kept)
            report["same"] = all(torch.equal(value, weights.state[name]) for name, value in saved.items())
            report["saved"] = len(saved)
        with open(out, "w") as file:
            json.dump(report, file)
    with open(f"{out}.rank{os.environ.get('RANK', '0')}", "w") as file:
        file.write(report["error"])
    trainer.accelerator.wait_for_everyone()
    os._exit(0)  # the report is written; what torch tears down at exit is not under test


if __name__ == "__main__":
    main()
