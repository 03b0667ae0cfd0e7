"""Sampling with vLLM in this process (extra `vllm`)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

from simpo.engines.base import FinishReason, Request, Result, Sample
from simpo.errors import EngineError
from simpo.weights import check_weights

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


class VllmEngine:
    """Samples with `vllm.LLM`, which batches continuously and shares prompts by itself.

    Tensor parallel: `tensor_parallel_size` devices hold one model. Data parallel: start several processes (`simpo
    generate --accelerate multi_gpu --num_processes N`); each takes its own `tensor_parallel_size` devices. (One
    `vllm.LLM` with data_parallel_size refuses to run in one process.)

    Args:
        name_or_path: hub name or directory.
        chunk_size: requests that are handed over at once; their results come when all are done.
        tensor_parallel_size: devices that hold one model.
        dtype: as for `TransformersEngine`; None is vLLM's `auto`.
        max_model_len: longest prompt with response, in tokens; None: the model's.
        options: further arguments of `vllm.LLM`.

    Raises:
        EngineError: vLLM is not installed, or cannot load the model.
    """

    batch_size: int | None = None

    def __init__(
        self,
        name_or_path: str,
        *,
        chunk_size: int = 4096,
        tensor_parallel_size: int = 1,
        dtype: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        max_model_len: int | None = None,
        **options: Any,
    ) -> None:
        take_devices(os.environ, tensor_parallel_size)
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise EngineError(
                f"engine: vllm needs vLLM ({error}); pip install 'simpo[vllm]', or write engine: transformers"
            ) from error
        check_weights(name_or_path, revision)
        self._params = SamplingParams
        self._chunk_size = chunk_size
        try:
            self._llm: Any = LLM(
                model=name_or_path,
                tensor_parallel_size=tensor_parallel_size,
                dtype=dtype or "auto",
                revision=revision,
                trust_remote_code=trust_remote_code,
                load_format="safetensors",
                max_model_len=max_model_len,
                # "auto" would take top_k, penalties and the like from the model's generation_config.json
                generation_config="vllm",
                **options,
            )
        except (ValueError, OSError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise EngineError(f"vLLM cannot load {name_or_path!r}: {reason}") from error

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let vLLM end its worker processes."""
        self._llm = None

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Sample each request, a chunk at a time."""
        left = enumerate(requests)
        while chunk := list(itertools.islice(left, self._chunk_size)):
            prompts = [{"prompt_token_ids": list(request.prompt_ids)} for _, request in chunk]
            params = [self._settings(request) for _, request in chunk]
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
            for (number, _), output in zip(chunk, outputs, strict=True):
                best = output.outputs[0]
                reason: FinishReason = "length" if best.finish_reason == "length" else "stop"
                yield Result(number, Sample(best.text, reason, len(best.token_ids), list(best.token_ids)))

    def _settings(self, request: Request) -> Any:
        return self._params(
            n=1,
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop_token_ids=list(request.stop_ids),
            skip_special_tokens=True,
        )


def take_devices(environment: MutableMapping[str, str], devices: int) -> None:
    """Leave this process of several its own devices, and hide the launcher, which vLLM would take for its own.

    Must happen before CUDA starts in this process.

    Raises:
        EngineError: there are fewer devices than the processes of this machine need.
    """
    rank = int(environment.get("LOCAL_RANK", "0"))
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        seen = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        names = seen or [str(number) for number in range((rank + 1) * devices)]
        own = names[rank * devices : (rank + 1) * devices]
        if len(own) < devices:
            raise EngineError(
                f"process {rank} of this machine needs {devices} devices, and CUDA_VISIBLE_DEVICES names {len(names)}; "
                "lower --num_processes or tensor_parallel_size"
            )
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    for name in _LAUNCHER:
        environment.pop(name, None)
