"""One training run in this process: seconds of its steps, losses, peak memory, processed tokens."""

import os
import tempfile
import time
import warnings
from typing import Any

import datasets
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging

from benchmarks.data import TOKENIZER, lengths_of
from benchmarks.peer import build_peer
from benchmarks.presets import TrainingJob
from benchmarks.processes import peak_memory
from benchmarks.variants import change_model, trainer_class
from simpo import SimPOConfig
from simpo.flops import PairLengths, model_shape, training_flops

_THREADS = int(os.environ.get("OMP_NUM_THREADS", 2))  # of torch on a CPU


class StepClock(TrainerCallback):
    """Seconds and processed tokens of each step; the first step counts from its own beginning."""

    def __init__(self, model: Any) -> None:
        self.marks: list[float] = []
        self.tokens: list[int] = []
        self._seen = 0
        model.base_model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._seen += (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel()

    def _mark(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())
        self.tokens.append(self._seen)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start of the first step."""
        self._mark()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End of each step."""
        self._mark()


def run_training(job: TrainingJob) -> dict[str, Any]:
    """Train, and say what it cost.

    Returns:
        pairs_per_microbatch; step_seconds, step_tokens, step_flops and losses by step; peak_bytes; device. Or
        `error`, where the device's memory does not hold the micro-batch.
    """
    logging.set_verbosity_error()  # the table says what matters
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    datasets.disable_progress_bars()
    torch.set_num_threads(_THREADS)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _build(job, folder)
        clock = StepClock(trainer.model)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except torch.OutOfMemoryError as error:
            return {"error": f"out of memory: {str(error).splitlines()[0]}"}
    return {
        "pairs_per_microbatch": job.pairs_per_microbatch,
        "step_seconds": [end - start for start, end in zip(clock.marks, clock.marks[1:], strict=False)],
        "step_tokens": [end - start for start, end in zip(clock.tokens, clock.tokens[1:], strict=False)],
        "step_flops": _step_flops(job),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "peak_bytes": peak_memory(),
        "device": torch.cuda.get_device_name() if job.cuda else "cpu",
    }


def _build(job: TrainingJob, folder: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)  # names the padding token; the ids come as they are
    dataset = Dataset.from_list(job.pairs)
    common = _common_settings(job, folder)
    if job.variant is None:
        accumulation = job.pairs_per_step // job.pairs_per_microbatch
        return build_peer(
            build_model(job.shape, cuda=job.cuda, attention=_best_attention(job.cuda)),
            dataset,
            tokenizer,
            common,
            gradient_accumulation_steps=accumulation,
        )
    args = SimPOConfig(
        beta=2.0,
        gamma_beta_ratio=0.5,
        prefix_sharing=job.variant.shared,
        total_train_batch_size=job.pairs_per_step,
        max_prompt_length=job.max_length // 2,
        max_tokens_per_microbatch=job.max_tokens if job.variant.balanced else None,
        monitor="off",
        **common,
    )
    model = build_model(job.shape, cuda=job.cuda)
    trainer = trainer_class(job.variant)(model, args, dataset, processing_class=tokenizer)
    change_model(job.variant, model)
    return trainer


def _step_flops(job: TrainingJob) -> list[int]:
    """Model FLOPs of each step: of the method, whatever the variant pads or scores in vain."""
    shared = job.variant is not None and job.variant.shared
    shape = model_shape(LlamaConfig(**job.shape))
    lengths = [PairLengths(*row) for row in lengths_of(job.pairs).tolist()]
    steps = range(0, len(lengths), job.pairs_per_step)
    return [training_flops(shape, lengths[start : start + job.pairs_per_step], shared=shared) for start in steps]


def _common_settings(job: TrainingJob, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": job.pairs_per_microbatch,
        "max_steps": len(job.pairs) // job.pairs_per_step,
        "max_length": job.max_length,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused" if job.cuda else "adamw_torch",
        "bf16": job.cuda,
        "tf32": True if job.cuda else None,
        "use_cpu": not job.cuda,
        "dataloader_pin_memory": job.cuda,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
    }


def build_model(shape: dict[str, Any], *, cuda: bool, attention: str = "sdpa") -> LlamaForCausalLM:
    """A Llama with random float32 weights, the same in every process."""
    config = LlamaConfig(**{"bos_token_id": 0, "eos_token_id": 1, **shape})
    config._attn_implementation = attention
    torch.manual_seed(0)
    with torch.device("cuda" if cuda else "cpu"):  # drawing billions of numbers takes a CPU half a minute
        return LlamaForCausalLM(config)


def _best_attention(cuda: bool) -> str:
    """FlashAttention for the peer where it is installed: SDPA cannot use its kernel with a padding mask."""
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if cuda and is_flash_attn_2_available() else "sdpa"
