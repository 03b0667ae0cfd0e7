"""On a GPU: the memory that is predicted is what CUDA's allocator held at most.

    SIMPO_TEST_GPUS=0 pytest -m gpu tests/planning/test_gpu_memory.py

Imports no trainer, so that torch, transformers and peft are enough; without trl the head is left out on both sides.
"""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpo.flops import PairLengths
from simpo.planning.engine import Engine
from simpo.planning.memory import Case, memory_of

PAIR = PairLengths(256, 384, 384)
WITHIN = 0.1


def config() -> Any:
    """1.7 billion parameters; heads are not grouped, which torch before 2.12 would repeat for its kernel."""
    from transformers import LlamaConfig

    shape = {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    return LlamaConfig(**shape, num_attention_heads=16, num_key_value_heads=16, tie_word_embeddings=False)


def without_head(self: nn.Linear, hidden: Tensor, target_ids: Tensor | None = None) -> Tensor:
    return hidden.float().sum(-1) + self.weight[0, 0].float()


def measured(case: Case) -> int:
    """Most bytes that were allocated in the second of two steps of two micro-batches."""
    from types import MethodType

    from transformers import AutoModelForCausalLM

    from simpo.forward import install_packed_forward
    from simpo.model import add_adapter
    from simpo.planning.rehearsal import Step, _pack, enable_checkpointing
    from simpo.scoring import pack_logps

    weights = torch.float32 if case.adapter is None else torch.bfloat16
    with torch.device("cuda"):
        model: Any = AutoModelForCausalLM.from_config(case.config, dtype=weights)
    install_packed_forward(model)
    if not find_spec("trl"):
        head = model.get_output_embeddings()
        head.forward = MethodType(without_head, head)
    if case.checkpointing:
        enable_checkpointing(model)
    if case.adapter is not None:
        model = add_adapter(model, case.adapter)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=case.optim.endswith("fused"), foreach=None)
    pack = {key: value.to("cuda") if hasattr(value, "to") else value
            for key, value in _pack(Step(case.config, case.pairs, shared=case.shared)).items()}  # fmt: skip
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                chosen, rejected = pack_logps(model, pack)  # type: ignore[arg-type]
                loss = (chosen - rejected).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            del chosen, rejected, loss
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated()


def lora() -> Any:
    from simpo.planning.changes import lora

    return lora()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("pairs", "options"),
    [
        (4, {}),
        (16, {}),
        (16, {"checkpointing": True}),
        (32, {"checkpointing": True, "optim": "adamw_torch"}),
        (8, {"shared": False}),
        (8, {"adapter": lora}),
        (32, {"adapter": lora, "checkpointing": True}),
    ],
)
def test_predicted_is_measured(pairs: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if "adapter" in options:
        pytest.importorskip("peft")
        options = {**options, "adapter": options["adapter"]()}
    if not find_spec("trl"):
        monkeypatch.setattr("simpo.planning.standins._head", without_head)
    case = Case(config(), Engine("single", 1), (PAIR,) * pairs, **{"optim": "adamw_torch_fused", **options})
    predicted = memory_of(case).tensors
    torch.cuda.empty_cache()
    found = measured(case)
    assert predicted == pytest.approx(found, rel=WITHIN), f"{predicted / 2**30:.2f} against {found / 2**30:.2f} GiB"
