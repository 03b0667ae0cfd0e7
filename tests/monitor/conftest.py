"""A tiny model that has learned to speak: it counts upwards by a step that the prompt names, and ends its answer."""

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

END, WORDS = 2, range(20, 120)


def sentence(prompt: list[int], length: int) -> list[int]:
    """Words that follow one another from where the prompt says."""
    return [WORDS[(prompt[1] + at) % len(WORDS)] for at in range(length)]


def preference_pairs(count: int, seed: int = 0, *, chosen_ends: bool = True) -> list[dict[str, list[int]]]:
    """The chosen response counts on, the rejected one leaves out every other word; both end, or one alone does."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        prompt = [1, rng.randrange(3, 100), 10]
        length = rng.randint(5, 8)
        chosen = sentence(prompt, length)
        rejected = [WORDS[(prompt[1] + 2 * at) % len(WORDS)] for at in range(length)]
        end = [END] if chosen_ends else []
        pairs.append({"prompt_ids": prompt, "chosen_ids": chosen + end, "rejected_ids": [*rejected, END]})
    return pairs


@pytest.fixture(scope="session")
def spoken() -> Any:
    """The model, trained for some seconds; use a copy."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 120, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(**shape, num_attention_heads=4, bos_token_id=1, eos_token_id=END, pad_token_id=0)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rng = random.Random(1)
    for _ in range(160):
        rows = [pair["prompt_ids"] + pair["chosen_ids"] for pair in preference_pairs(16, rng.randrange(10**6))]
        # some of the other kind, so that both are likely
        rows += [pair["prompt_ids"] + pair["rejected_ids"] for pair in preference_pairs(16, rng.randrange(10**6))]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        labels = ids.masked_fill(ids == 0, -100)
        labels[:, :3] = -100
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def make_trainer(spoken, make_args, tmp_path) -> Any:
    """make_trainer(train, evaluation, **settings) -> a trainer of a copy of the model, with monitors."""
    from datasets import Dataset

    from simpo import PreferenceTrainer

    sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))
    from trajectory import tokenizer_stub

    def make(train: Any, evaluation: Any = None, own_objective: Any = None, **settings: Any) -> Any:
        defaults = {"monitor": "warn", "monitor_max_new_tokens": 16, "per_device_train_batch_size": 8,
                    "per_device_eval_batch_size": 16, "learning_rate": 3e-4, "max_length": 64,
                    "max_prompt_length": 32}  # fmt: skip
        sets = [None if rows is None else Dataset.from_list(rows) for rows in (train, evaluation)]
        args = make_args(**defaults | settings)
        return PreferenceTrainer(
            copy.deepcopy(spoken), args, *sets, processing_class=tokenizer_stub(), objective=own_objective
        )

    return make


@pytest.fixture
def warnings_of(tmp_path) -> Any:
    """warnings_of() -> {name: gravest level} of the run in this test's folder."""

    def read() -> dict[str, str]:
        path = tmp_path / "out" / "monitor" / "warnings.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return {row["name"]: row["level"] for row in map(json.loads, lines)}

    return read
