"""Train a tiny model for 12 steps under whatever engine launched this file; rank 0 writes losses and the engine's name.

Usage: trajectory.py OUT.json KEY=VALUE ...   (settings of PreferenceConfig as JSON values)
"""

import json
import os
import random
import sys

from accelerate.utils import DistributedType
from datasets import Dataset
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from simpo import PreferenceConfig, PreferenceTrainer, batching

KEYS = ("prompt_ids", "chosen_ids", "rejected_ids")


def pairs(count: int) -> Dataset:
    """Pairs of very different lengths."""
    rng = random.Random(0)
    bounds = {"prompt_ids": 30, "chosen_ids": 20, "rejected_ids": 15}
    return Dataset.from_list(
        [
            {key: [rng.randrange(3, 120) for _ in range(rng.randint(1, bounds[key]))] for key in KEYS}
            for _ in range(count)
        ]
    )


def engine_of(trainer: PreferenceTrainer) -> str:
    """What really drives the run, read from the wrapped model rather than from the settings."""
    accelerator, wrapped = trainer.accelerator, trainer.model_wrapped
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"{type(wrapped).__name__} stage {wrapped.zero_optimization_stage()} x {accelerator.num_processes}"
    if isinstance(wrapped, FSDPModule):
        return f"FSDP2 x {accelerator.num_processes}"
    name = "DDP" if isinstance(wrapped, DistributedDataParallel) else "plain"
    return f"{name} x {accelerator.num_processes}"


def as_drawn(pairs, tokens, budget, world_size):
    """A plan that balances nothing: so many pairs a micro-batch, in the order in which they were drawn."""
    size = budget.pairs
    micro_batches = [batching.MicroBatch(tuple(pairs[start : start + size])) for start in range(0, len(pairs), size)]
    while len(micro_batches) % world_size:
        micro_batches.append(batching.MicroBatch((pairs[0],), fillers=1))
    return [micro_batches[rank::world_size] for rank in range(world_size)]


def main() -> None:
    """Train and report."""
    out, settings = sys.argv[1], dict(item.split("=", 1) for item in sys.argv[2:])
    options = {
        "output_dir": out + ".run", "num_train_epochs": 2, "learning_rate": 3e-3, "warmup_steps": 2, "logging_steps": 1,
        "total_train_batch_size": 8, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False,
        "sft_weight": 0.1, "disable_tqdm": True, "weight_decay": 0.01, "eval_on_start": True,
        "monitor": "off",
    } | {key: json.loads(value) for key, value in settings.items()}  # fmt: skip
    evaluate_first = options.pop("evaluate_first", False)
    if options.pop("as_drawn", False):
        batching.plan_step = as_drawn
    set_seed(1)
    args = PreferenceConfig(**options)
    set_seed(2)
    shape = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    )
    tokenizer = tokenizer_stub()
    trainer = PreferenceTrainer(model, args, pairs(43), pairs(7), processing_class=tokenizer)
    if evaluate_first:
        trainer.evaluate()
        trainer.state.log_history.clear()
    trainer.train()
    evaluations = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    evaluations.append(trainer.evaluate()["eval_loss"])
    predicted = trainer.predict(pairs(7)).predictions["rewards/margins"].tolist()
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        report = {
            "engine": engine_of(trainer),
            "losses": [entry["loss"] for entry in logs],
            "grad_norms": [entry["grad_norm"] for entry in logs],
            "margins": [entry["rewards/margins"] for entry in logs],
            "eval": evaluations,
            "predicted": predicted,
        }
        with open(out, "w") as file:
            json.dump(report, file)
    trainer.accelerator.wait_for_everyone()  # no process may close its connections while another still uses them
    trainer.accelerator.end_training()
    os._exit(0)  # the report is written; what torch tears down at exit is not under test


def tokenizer_stub():
    """A tokenizer that the tokenised pairs never need."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{i}": i for i in range(120)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="t2", pad_token="t1")


if __name__ == "__main__":
    main()
