"""Every run in a process of its own: its peak memory is its own, and nothing is warm from the run before."""

import importlib
import multiprocessing
import os
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from typing import Any

# glibc hands large buffers back to the system and takes them anew in every step: up to a third of a CPU step's time, or
# nothing, as sizes happen to fall. Keeping them makes every row faster, the peer's too, and rows comparable.
_STEADY_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}

_PRELOAD = ["benchmarks.training", "deepspeed"]  # accelerate imports deepspeed where it is installed


def run_apart(function: str, job: Any, *, cuda: bool) -> Any:
    """`function(job)` in a fresh process, the function given as `module:name`, so that this process need not load it.

    On a CPU the processes are forked from one that has imported torch and the trainers and done nothing else, which
    saves seconds of imports for each; CUDA does not survive a fork, so there every process starts from nothing.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=_context(cuda), max_tasks_per_child=1) as pool:
        return pool.submit(_call, function, job).result()


def _call(function: str, job: Any) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(job)


def _context(cuda: bool) -> BaseContext:
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if cuda:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several, TRL would split its batches over them
        return multiprocessing.get_context("spawn")
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", **_STEADY_ALLOCATOR}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def peak_memory() -> int:
    """Bytes: the most that this process held on the GPU if it used one, else in RAM."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
