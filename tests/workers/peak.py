"""Peak memory of a short run of one objective on a model of 30 million parameters.

Usage: peak.py OBJECTIVE FOLDER [--second-model]; prints the process's peak in MiB.
"""

import resource
import sys

import torch
from trajectory import pairs, tokenizer_stub
from transformers import LlamaConfig, LlamaForCausalLM

from simpo import PreferenceConfig, PreferenceTrainer


def main() -> None:
    """Train for three steps."""
    objective, folder = sys.argv[1:3]
    torch.manual_seed(0)
    shape = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 9}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=8, num_key_value_heads=8))
    second = [parameter.detach().clone() for parameter in model.parameters()] if "--second-model" in sys.argv else []
    args = PreferenceConfig(
        objective=objective, output_dir=f"{folder}/{objective}", reference_cache=f"{folder}/references", max_steps=3,
        total_train_batch_size=8, use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    PreferenceTrainer(model, args, pairs(24), processing_class=tokenizer_stub()).train()
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"parameters {count} second {len(second)}", file=sys.stderr)
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
