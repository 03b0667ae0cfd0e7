"""vLLM in this process, against a stand-in with the arguments of its documentation: vLLM itself needs a GPU."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from simpo.engines.base import Request, Sample
from simpo.engines.vllm_engine import VllmEngine, take_devices
from simpo.errors import EngineError


def test_it_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match=r"pip install 'simpo\[vllm\]'"):
        VllmEngine("m")


def test_token_ids_and_seeds_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            calls.append(options)

        def generate(self, prompts: list[Any], params: list[Any], *, use_tqdm: bool) -> list[Any]:
            calls.append((prompts, params))
            answer = SimpleNamespace(text="hi", token_ids=(4, 2), finish_reason="stop")
            return [SimpleNamespace(outputs=[answer]) for _ in prompts]

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    requests = [Request([1, n], 16, 0.8, 0.95, seed=n, stop_ids=(2,)) for n in range(5)]
    with VllmEngine("m", chunk_size=2, tensor_parallel_size=2, gpu_memory_utilization=0.5) as engine:
        results = list(engine.generate(requests))
    assert [result.number for result in results] == [0, 1, 2, 3, 4]
    assert results[0].outcome == Sample("hi", "stop", 2, [4, 2])
    options, (prompts, params), *rest = calls
    assert options["generation_config"] == "vllm" and options["tensor_parallel_size"] == 2 and len(rest) == 2
    assert prompts == [{"prompt_token_ids": [1, 0]}, {"prompt_token_ids": [1, 1]}]
    assert params[1] == {
        "n": 1, "max_tokens": 16, "temperature": 0.8, "top_p": 0.95, "seed": 1, "stop_token_ids": [2],
        "skip_special_tokens": True,
    }  # fmt: skip


def test_each_process_takes_its_own_devices() -> None:
    launched = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_PORT": "1"}
    environment = dict(launched)
    take_devices(environment, 2)
    assert environment == {"CUDA_VISIBLE_DEVICES": "2,3"}
    environment = launched | {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    take_devices(environment, 2)
    assert environment == {"CUDA_VISIBLE_DEVICES": "6,7"}
    with pytest.raises(EngineError, match="process 1 of this machine needs 2 devices"):
        take_devices(launched | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, 2)
    alone: dict[str, str] = {}
    take_devices(alone, 4)
    assert alone == {}
