"""Train a tiny model for one epoch with every objective under whatever engine launched this file.

Usage: objectives.py OUT.json KEY=VALUE ...   (settings of PreferenceConfig as JSON values)
"""

import json
import os
import sys

from trajectory import engine_of, pairs, tokenizer_stub
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from simpo import PreferenceConfig, PreferenceTrainer
from simpo.objectives import OBJECTIVES

KEYS = ("loss", "rewards/chosen", "rewards/rejected", "log_ratios/chosen", "kl")
SHAPE = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def rows_for(objective: str, count: int):
    """Pairs; for KTO every third row has one response."""
    rows = pairs(count)
    if not OBJECTIVES[objective].kl:
        return rows

    def one_sided(row, number):
        side = ("chosen_ids", "rejected_ids", None)[number % 3] if number % 9 < 3 else None
        return row if side is None else {**row, side: []}

    return rows.map(one_sided, with_indices=True)


def train(objective: str, out: str, settings: dict) -> tuple[dict, str]:
    """A run of one objective, and the engine that drove it."""
    options = {
        "output_dir": f"{out}.run", "learning_rate": 3e-3, "warmup_steps": 1, "logging_steps": 1, "save_strategy": "no",
        "total_train_batch_size": 8, "use_cpu": True, "bf16": False, "disable_tqdm": True, "eval_on_start": True,
        "reference_cache": f"{out}.references", "monitor": "off",
    }  # fmt: skip
    references_first = settings.pop("references_first", False)
    args = PreferenceConfig(objective=objective, **options | settings)
    set_seed(2)
    config = LlamaConfig(**SHAPE, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    trainer = PreferenceTrainer(
        LlamaForCausalLM(config),
        args,
        rows_for(objective, 43),
        rows_for(objective, 7),
        processing_class=tokenizer_stub(),
    )
    if references_first:
        trainer.compute_references()
    trainer.train()
    trainer.evaluate()
    logs = [
        {key: entry[key] for name in KEYS for key in (name, f"eval_{name}") if key in entry}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    engine = engine_of(trainer)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    return {"logs": logs}, engine


def main() -> None:
    """Train with all of them, one after the other."""
    out, settings = sys.argv[1], dict(item.split("=", 1) for item in sys.argv[2:])
    values = {key: json.loads(value) for key, value in settings.items()}
    names = values.pop("objectives", list(OBJECTIVES))
    report = {}
    for name in names:
        report[name], report["engine"] = train(name, out, values)
    if os.environ.get("RANK", "0") == "0":
        with open(out, "w") as file:
            json.dump(report, file)
    from accelerate import PartialState

    PartialState().wait_for_everyone()
    os._exit(0)  # the report is written; what torch tears down at exit is not under test


if __name__ == "__main__":
    main()
