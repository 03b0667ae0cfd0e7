"""TRL's CPOTrainer with the SimPO loss, on pairs that are token ids already."""

import warnings
from typing import Any

from datasets import Dataset

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL says on import that the module is experimental
    from trl.experimental.cpo import CPOConfig, CPOTrainer


class PretokenisedCPOTrainer(CPOTrainer):
    """Takes `prompt_ids`, `chosen_ids`, `rejected_ids` as they are, so that both trainers see the same tokens."""

    def tokenize_row(self, feature: dict[str, list[int]], model: Any = None) -> dict[str, list[int]]:
        """The columns that CPOTrainer makes of a row of texts."""
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            response = feature[f"{side}_ids"]
            row[f"{side}_input_ids"] = prompt + response
            row[f"{side}_attention_mask"] = [1] * len(row[f"{side}_input_ids"])
            row[f"{side}_labels"] = [-100] * len(prompt) + response
        return row


def build_peer(model: Any, dataset: Dataset, tokenizer: Any, common: dict[str, Any], **own: Any) -> CPOTrainer:
    """A CPOTrainer for SimPO with beta 2 and a margin of 1; `common` holds settings of `TrainingArguments`."""
    args = CPOConfig(
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=2.0,
        simpo_gamma=1.0,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        **common,
        **own,
    )
    return PretokenisedCPOTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
