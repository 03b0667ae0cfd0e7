"""Predicted and measured peak memory of training steps, and the table of docs/planning.md.

    python -m benchmarks.planning              # CPU preset where there is no GPU: models of about 50 million parameters

Predicted: `simpo.planning.memory`, from the model's config and the lengths of the pairs alone. Measured: the second
step of `PreferenceTrainer`, of several processes the one that holds most. On a CPU: what torch's allocator reports to
the profiler, from before the model is made; on a GPU: `torch.cuda.max_memory_allocated`. The reserve (CUDA's context,
fragmentation) is in neither.
"""

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.data import TOKENIZER, random_pairs
from benchmarks.report import add_common_arguments, default_preset, environment, print_table, slug, write_json

_LLAMA = {"vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6,
          "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False}  # fmt: skip
_SMALL = {**_LLAMA, "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
_8B = {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 8,
       "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}  # fmt: skip
_TIED = {"tie_word_embeddings": True}
_MARK = "the second step"
_DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}
# What `accelerate launch` puts into the environment of a process.
_VARIABLES = {
    "ddp": {},
    "zero2": {**_DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {**_DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"},
}
_GEMMA = {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 4096, **_TIED}


class Job(NamedTuple):
    """One run.

    Fields:
        family: of the model: `llama`, `gemma2`, `qwen3`.
        shape: arguments of its configuration.
        pairs: of a micro-batch.
        lengths: tokens of prompt, chosen and rejected of each pair.
        micro_batches: of a step.
        bf16: mixed precision.
        checkpointing: activations are computed again.
        lora: rank of adapters on all linear layers; 0 trains everything.
        shared: prompts are computed once.
        optim: name of the optimizer.
        cuda: on the GPU.
        engine: of `simpo.planning.engine.ENGINES`.
        processes: that share a step's micro-batches.
    """

    family: str = "llama"
    shape: dict[str, Any] = _LLAMA
    pairs: int = 2
    lengths: tuple[int, int, int] = (32, 40, 40)
    micro_batches: int = 2
    bf16: bool = False
    checkpointing: bool = False
    lora: int = 0
    shared: bool = True
    optim: str = "adamw_torch"
    cuda: bool = False
    engine: str = "single"
    processes: int = 1


CPU: dict[str, Job] = {
    "float32": Job(),
    "float32, one micro-batch": Job(micro_batches=1),
    "float32, 1 pair": Job(pairs=1),
    "float32, 8 pairs": Job(pairs=8),
    "float32, 8 pairs, prompts repeated": Job(pairs=8, shared=False),
    "float32, checkpointing": Job(checkpointing=True),
    "float32, checkpointing, 8 pairs": Job(pairs=8, checkpointing=True),
    "float32, fused AdamW": Job(optim="adamw_torch_fused"),
    "bf16": Job(bf16=True),
    "bf16, 8 pairs": Job(bf16=True, pairs=8),
    "bf16, checkpointing": Job(bf16=True, checkpointing=True),
    "bf16, checkpointing, 8 pairs": Job(bf16=True, pairs=8, checkpointing=True),
    "LoRA, bf16": Job(bf16=True, lora=16),
    "LoRA, bf16, 8 pairs": Job(bf16=True, lora=16, pairs=8),
    "LoRA, bf16, checkpointing, 8 pairs": Job(bf16=True, lora=16, pairs=8, checkpointing=True),
    "Gemma-2, float32": Job("gemma2", {**_LLAMA, **_GEMMA}),
    "Gemma-2, bf16, checkpointing": Job("gemma2", {**_LLAMA, **_GEMMA}, bf16=True, checkpointing=True),
    "Qwen3, float32": Job("qwen3", {**_LLAMA, **_TIED, "head_dim": 64}),
    "Qwen3, bf16, 8 pairs": Job("qwen3", {**_LLAMA, **_TIED, "head_dim": 64}, bf16=True, pairs=8),
}
_TWO = Job(shape={**_LLAMA, "num_hidden_layers": 2}, processes=2, micro_batches=4, pairs=4)
CPU |= {
    "DDP x 2, float32": _TWO._replace(engine="ddp"),
    "DDP x 2, bf16, one micro-batch each": _TWO._replace(engine="ddp", bf16=True, micro_batches=2),
    "ZeRO-2 x 2, bf16": _TWO._replace(engine="zero2", bf16=True),
    "ZeRO-2 x 2, float32": _TWO._replace(engine="zero2"),
    "ZeRO-3 x 2, bf16": _TWO._replace(engine="zero3", bf16=True),
    "ZeRO-3 x 2, bf16, checkpointing": _TWO._replace(engine="zero3", bf16=True, checkpointing=True),
    "ZeRO-3 x 2, float32": _TWO._replace(engine="zero3"),
    "ZeRO-3 x 2, LoRA, bf16": _TWO._replace(engine="zero3", bf16=True, lora=16),
}
_GPU = Job(shape=_8B, pairs=8, lengths=(256, 384, 384), bf16=True, optim="adamw_torch_fused", cuda=True)
PRESETS: dict[str, dict[str, Job]] = {
    "cpu": CPU,
    "gpu": {
        "bf16": _GPU,
        "bf16, foreach AdamW": _GPU._replace(optim="adamw_torch"),
        "bf16, checkpointing": _GPU._replace(checkpointing=True),
        "bf16, checkpointing, 32 pairs": _GPU._replace(checkpointing=True, pairs=32),
        "bf16, 16 pairs, prompts repeated": _GPU._replace(pairs=16, shared=False),
        "LoRA, bf16, checkpointing, 16 pairs": _GPU._replace(lora=16, pairs=16, checkpointing=True),
    },
    "tiny": {"float32": Job(shape=_SMALL), "LoRA, bf16, checkpointing": Job(shape=_SMALL, bf16=True, lora=4,
             checkpointing=True)},
}  # fmt: skip


def config_of(job: Job) -> Any:
    """The model's configuration."""
    from transformers import AutoConfig

    return AutoConfig.for_model(job.family, **job.shape)


def adapter_of(job: Job) -> Any:
    """The adapter's configuration, or None."""
    from peft import LoraConfig

    return LoraConfig(r=job.lora, target_modules="all-linear", task_type="CAUSAL_LM") if job.lora else None


def predict(job: Job) -> dict[str, float]:
    """Bytes by part, from the config alone; and the moment of the peak."""
    from simpo.flops import PairLengths
    from simpo.planning.engine import Engine
    from simpo.planning.memory import Case, memory_of

    memory = memory_of(
        Case(
            config_of(job),
            Engine(job.engine, job.processes),
            (PairLengths(*job.lengths),) * job.pairs,
            bf16=job.bf16,
            checkpointing=job.checkpointing,
            adapter=adapter_of(job),
            shared=job.shared,
            accumulated=job.micro_batches > job.processes,
            optim=job.optim,
            cuda=job.cuda,
        )
    )
    return {**memory.parts, "total": memory.tensors, "moment": memory.moment}  # type: ignore[dict-item]


def measure(job: Job) -> int:
    """Bytes of the peak in the second step."""
    with tempfile.TemporaryDirectory() as folder:
        if job.processes == 1:
            return train(job, Path(folder))
        file = Path(folder, "job.json")
        file.write_text(json.dumps(job._asdict()))
        words = ["--standalone", f"--nproc_per_node={job.processes}", "-m", __spec__.name, "--rank-of", str(file)]
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words],
            env=os.environ | _VARIABLES[job.engine], stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        return max(int(found.read_text()) for found in Path(folder).glob("*.bytes"))


def _rank_of(file: Path) -> None:
    """What each of several processes does."""
    job = Job(**json.loads(file.read_text()))
    rank = os.environ["RANK"]
    (file.parent / rank).mkdir()
    (file.parent / f"{rank}.bytes").write_text(str(train(job, file.parent / rank)))


def train(job: Job, folder: Path) -> int:
    """Two steps on this process; bytes of the peak in the second one."""
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    from simpo import PreferenceConfig, PreferenceTrainer

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    count = 2 * job.pairs * job.micro_batches
    rows = random_pairs(np.tile(job.lengths, (count, 1)), job.shape["vocab_size"])
    args = PreferenceConfig(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=job.pairs, use_cpu=not job.cuda, bf16=job.bf16,
        total_train_batch_size=job.pairs * job.micro_batches, gradient_checkpointing=job.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if job.checkpointing else None, optim=job.optim,
        prefix_sharing=job.shared, max_length=sum(job.lengths), save_strategy="no", disable_tqdm=True,
        lr_scheduler_type="constant", max_prompt_length=job.lengths[0], dataloader_pin_memory=job.cuda, monitor="off",
    )  # fmt: skip
    base = torch.bfloat16 if job.lora and job.bf16 else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    with watched(job, folder) as (callback, peak):
        model = AutoModelForCausalLM.from_config(config_of(job), dtype=base)
        trainer = PreferenceTrainer(
            model, args, Dataset.from_list(rows), processing_class=tokenizer, peft_config=adapter_of(job)
        )
        trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return peak()


@contextlib.contextmanager
def watched(job: Job, folder: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    """A callback that marks the second step, and what gives the peak in it once the block has ended."""
    import torch
    from transformers import TrainerCallback

    found: list[int] = []
    mark = torch.profiler.record_function(_MARK)

    class Marks(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_begin(self, args: Any, state: Any, *arguments: Any, **named: Any) -> None:
            if state.global_step == 1:
                if job.cuda:
                    torch.cuda.reset_peak_memory_stats()
                mark.__enter__()

        def on_step_end(self, args: Any, state: Any, *arguments: Any, **named: Any) -> None:
            if state.global_step == 2:
                mark.__exit__(None, None, None)
                if job.cuda:
                    found.append(torch.cuda.max_memory_allocated())

    if job.cuda:
        yield Marks(), found.pop
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield Marks(), found.pop
    file = folder / "trace.json"
    profile.export_chrome_trace(str(file))
    found.append(peak_of_trace(json.loads(file.read_text())))


def peak_of_trace(trace: dict[str, Any]) -> int:
    """Most bytes that were held while the mark lasts, of all that was allocated since a profile of the CPU began.

    Without a mark, of the whole profile.
    """
    marks = [event for event in trace["traceEvents"] if event.get("name") == _MARK and event.get("ph") == "X"]
    begin, end = (marks[0]["ts"], marks[0]["ts"] + marks[0]["dur"]) if marks else (float("-inf"), float("inf"))
    events = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    live: dict[int, int] = {}
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        if event["ts"] > begin:
            peak = max(peak, held)  # of before the first event, too
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        held -= live.pop(address, 0)  # also where another thread has freed it, which is not in the profile
        if size > 0:
            held += size
            live[address] = size
        if event["ts"] > end:
            return peak
    return max(peak, held)


def compare(jobs: dict[str, Job]) -> Iterator[dict[str, Any]]:
    """Predicted and measured bytes of each job."""
    for name, job in jobs.items():
        predicted = predict(job)
        measured = measure(job)
        gc.collect()
        off = predicted["total"] / measured - 1
        print(f"{name}: {predicted['total'] / 2**20:,.0f} MiB, measured {measured / 2**20:,.0f}", flush=True)
        yield {"name": name, "job": job._asdict(), "predicted": predicted, "measured": measured, "off": off}


def read_rows(path: Path) -> dict[str, Any]:
    """Rows by name of a report that is there."""
    return {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print the table, and write JSON."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser, list(PRESETS))
    parser.add_argument("--runs", nargs="*", metavar="NAME", help="these rows only; others that were measured stay")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.rank_of is not None:
        _rank_of(given.rank_of)
        return 0
    preset, about = given.preset or default_preset(), environment("benchmarks.planning", argv)
    gpus = about["hardware"]["gpus"]
    file = f"planning_{slug(gpus[0]['name'] if preset == 'gpu' and gpus else preset)}"
    jobs, done = PRESETS[preset], read_rows(given.output / f"{file}.json") if given.runs else {}
    for row in compare({name: jobs[name] for name in given.runs or jobs}):
        done[row["name"]] = row
        write_json({**about, "preset": preset, "rows": list(done.values())}, given.output, file)
    rows = [done[name] for name in jobs if name in done]
    shown = [[row["name"], row["predicted"]["total"] / 2**20, row["measured"] / 2**20,
              f"{row['off']:+.1%}", row["predicted"]["moment"]] for row in rows]  # fmt: skip
    print(f"largest difference {max(abs(row['off']) for row in rows):.1%}")
    print_table("peak memory (MiB)", ("run", "predicted", "measured", "off", "predicted moment"), shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
