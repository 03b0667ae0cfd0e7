"""Shared fixtures: the golden values of the published implementation and tiny models of several families."""

import json
import os
import random
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several workers with several threads each wait for one another
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("SIMPO_TEST_GPUS", "")  # tests marked gpu run on these

import pytest
import torch

from tests.launching import Calls

# A shell's background job ignores the first, nohup the second; what tests start would ignore them as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: some/model\ndataset_mixer: {pairs.jsonl: 1.0}\nuse_cpu: true\n")
    return str(path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What `run_training` was called with, in place of training."""
    seen: Calls = []
    module = types.ModuleType("simpo.run")
    module.run_training = lambda settings, **given: seen.append({"settings": settings, **given})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "simpo.run", module)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return seen


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Values of the published implementation: rows, and runs with arguments, steps and evaluations."""
    return json.loads((GOLDEN / "paper_reference.json").read_text())


@pytest.fixture(scope="session")
def rows(golden: dict[str, Any]) -> Any:
    """The rows of the published implementation as a data set."""
    from datasets import Dataset

    return Dataset.from_list(golden["rows"])


@pytest.fixture
def make_args(tmp_path: Path) -> Callable[..., Any]:
    """make_args(**settings) -> settings of a short float32 run on the CPU that logs every step: SimPO's, or those of
    the `objective` that is named."""
    from simpo import PreferenceConfig, SimPOConfig

    def make(**settings: Any) -> Any:
        defaults = {
            "output_dir": str(tmp_path / "out"), "total_train_batch_size": 8, "learning_rate": 1e-3,
            "warmup_steps": 0.1, "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "bf16": False,
            "disable_tqdm": True, "optim": "adamw_torch", "weight_decay": 0.0, "max_prompt_length": 800,
            "max_length": 1024, "reference_cache": str(tmp_path / "references"),
            "monitor": "off",
        }  # fmt: skip
        return (PreferenceConfig if "objective" in settings else SimPOConfig)(**defaults | settings)

    return make


@pytest.fixture(scope="session")
def tiny_dir() -> str:
    """A Llama of 355k random parameters with its tokenizer."""
    return str(GOLDEN / "tiny")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_dir: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_dir)


def _shape() -> dict[str, Any]:
    return {
        "vocab_size": 200,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _configs() -> dict[str, Callable[[], Any]]:
    import transformers as hf

    windowed = {"head_dim": 8, "sliding_window": 8}
    gemma = {**windowed, "query_pre_attn_scalar": 8}
    mixed = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return {
        "llama": lambda: hf.LlamaConfig(**_shape()),
        "mistral": lambda: hf.MistralConfig(**_shape(), sliding_window=8),
        "gemma2": lambda: hf.Gemma2Config(**_shape(), **gemma, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
        "gemma3": lambda: hf.Gemma3TextConfig(**_shape(), **gemma, layer_types=mixed),
        "qwen3": lambda: hf.Qwen3Config(
            **_shape(), **windowed, use_sliding_window=True, max_window_layers=2, layer_types=list(reversed(mixed))
        ),
        "phi3": lambda: hf.Phi3Config(**_shape(), sliding_window=8),
        "cohere": lambda: hf.CohereConfig(**_shape(), logit_scale=0.25),
        "granite": lambda: hf.GraniteConfig(**_shape(), logits_scaling=4.0),
    }


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """make_model(family, attn="eager") -> a tiny random model whose weights are large enough to matter."""
    from transformers import AutoModelForCausalLM

    def make(family: str, *, attn: str = "eager", seed: int = 0) -> Any:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_configs()[family](), attn_implementation=attn)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.1)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., list[dict[str, list[int]]]]:
    """make_pairs([(prompt, chosen, rejected), ...]) -> tokenised pairs of those lengths with random ids."""

    def make(lengths: list[tuple[int, int, int]], *, vocabulary: int = 200, seed: int = 0) -> Any:
        rng = random.Random(seed)
        keys = ("prompt_ids", "chosen_ids", "rejected_ids")
        return [
            {key: [rng.randrange(3, vocabulary) for _ in range(n)] for key, n in zip(keys, row, strict=True)}
            for row in lengths
        ]

    return make


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU, with how to run it, where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU: SIMPO_TEST_GPUS=0 pytest -m gpu")
