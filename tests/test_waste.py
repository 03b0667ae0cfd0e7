"""What a step must not do: wait for the device, build logits or masks over a pack, or gradients of frozen weights.

Two watchers see every operation of forward and backward (on a CPU the backward pass runs in the same thread).
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

import simpo.logps
from simpo import SimPOTrainer
from simpo.monitor import nonfinite

# What makes the host wait for the device: reading a value, or an operation whose result has a size that depends on one.
WAITING_OPERATIONS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"}
WAITING_METHODS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero"}
READS_OF_A_LOG = 3  # loss and grad_norm, by transformers, and the sums of RunningMeans, in one copy


class Watcher(TorchDispatchMode):
    """Counts waiting operations, and notes each tensor that gets memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.allocated: list[tuple[int, tuple[int, ...], str]] = []
        self.with_gradients: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        self.names[func.overloadpacket.__name__] += 1
        if torch.is_grad_enabled():
            self.with_gradients.add(func.overloadpacket.__name__)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _storage(leaf) not in given:
                self.allocated.append((leaf.numel(), tuple(leaf.shape), str(func)))
        return result

    @property
    def largest(self) -> tuple[int, tuple[int, ...], str]:
        return max(self.allocated)


class Reads(TorchFunctionMode):
    """Counts methods that copy values to the host: for tensors of the CPU some of them are no operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in WAITING_METHODS or (name == "to" and "cpu" in args[1:2]):  # a torch.device: where it lies
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@pytest.fixture(scope="module")
def many_pairs(request) -> Dataset:
    """48 short pairs, as one pack of about 1,700 tokens."""
    make_pairs = request.getfixturevalue("make_pairs")
    return Dataset.from_list(make_pairs([(15 + n % 10, 6 + n % 5, 10 - n % 5) for n in range(48)], vocabulary=5000))


@pytest.fixture
def tall_model():
    """A model whose vocabulary dwarfs its layers."""
    torch.manual_seed(0)
    shape = {"vocab_size": 5000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=1))


@pytest.fixture
def make_trainer(tall_model, many_pairs, tiny_tokenizer, make_args, monkeypatch):
    """make_trainer(**settings): one pack a step, and a head that may hold small tiles only."""
    monkeypatch.setitem(simpo.logps._TILE_ELEMENTS, "cpu", 2**16)

    def make(peft_config=None, **settings) -> SimPOTrainer:
        options = {"total_train_batch_size": 48, "per_device_train_batch_size": 48, "per_device_eval_batch_size": 48}
        args = make_args(**options | settings)
        return SimPOTrainer(
            tall_model, args, many_pairs, many_pairs, processing_class=tiny_tokenizer, peft_config=peft_config
        )

    return make


@contextlib.contextmanager
def watched_step(trainer: SimPOTrainer) -> Iterator[tuple[Watcher, dict[str, int]]]:
    """A watcher around whatever follows, and the sizes of the only pack."""
    (pack,) = next(iter(trainer.get_train_dataloader()))
    sizes = {"T": pack["input_ids"].shape[1], "S": len(pack["target_ids"]), "V": 5000, "D": 32}
    trainer.scorer.parity_checked = True  # its ordinary forward has logits, of a dozen tokens
    with Watcher() as watcher:
        yield watcher, sizes


def _assert_small(watcher: Watcher, sizes: dict[str, int]) -> None:
    logits, mask = sizes["S"] * sizes["V"], sizes["T"] ** 2
    assert watcher.largest[0] < min(logits, mask) / 2, (watcher.largest, sizes)
    for _, shape, name in watcher.allocated:
        assert sum(size >= sizes["T"] for size in shape) < 2, (shape, name)


def test_a_training_step_builds_neither_logits_nor_a_mask(make_trainer) -> None:
    trainer = make_trainer(max_steps=1)
    with watched_step(trainer) as (watcher, sizes):
        trainer.train()
    assert sizes["T"] > 1600 and "embedding" in watcher.with_gradients
    assert watcher.names["embedding_dense_backward"] == 1, "the watcher sees the backward pass"
    _assert_small(watcher, sizes)


def test_evaluation_builds_no_logits_and_no_gradients(make_trainer) -> None:
    trainer = make_trainer()
    with watched_step(trainer) as (watcher, sizes):
        trainer.evaluate()
    layers = {"embedding", "mm", "silu"}
    assert layers <= set(watcher.names) and not layers & watcher.with_gradients
    assert not [name for name in watcher.names if "backward" in name]
    _assert_small(watcher, sizes)


def test_the_watcher_sees_logits_and_masks(tall_model) -> None:
    ids = torch.randint(5000, (1, 300))
    with Watcher() as watcher:
        tall_model(input_ids=ids)
    assert "embedding" in watcher.with_gradients and watcher.largest[0] == 300 * 5000
    with Watcher() as watcher:
        torch.ones(300, 300).tril()
    with pytest.raises(AssertionError):
        _assert_small(watcher, {"S": 300, "V": 5000, "T": 300})


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_head_has_no_gradient(make_trainer, frozen) -> None:
    from peft import LoraConfig

    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if frozen else None
    trainer = make_trainer(adapter, max_steps=1)
    with watched_step(trainer) as (watcher, sizes):
        trainer.train()
    heads = [name for _, shape, name in watcher.allocated if shape == (sizes["V"], sizes["D"])]
    assert bool(heads) is not frozen, heads


class _CountBySteps(TrainerCallback):
    """Notes for each step what was read up to the beginning of the next, its log included."""

    def __init__(self, watcher: Watcher, reads: Reads) -> None:
        self.watcher, self.reads = watcher, reads
        self.steps: list[Counter[str]] = []

    def _cut(self) -> None:
        found = +self.reads.names
        found += Counter({name: count for name, count in self.watcher.names.items() if name in WAITING_OPERATIONS})
        # `item` of a tensor shows in both
        found["_local_scalar_dense"] -= min(found["_local_scalar_dense"], self.reads.names["item"])
        self.steps.append(+found)
        self.watcher.names.clear(), self.reads.names.clear()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._cut()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._cut()


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_only_logging_steps_wait_for_the_device(rows, tiny_dir, make_args, clip) -> None:
    args = make_args(
        max_steps=8, total_train_batch_size=1, logging_steps=3, optim="adamw_torch_fused", max_grad_norm=clip
    )
    trainer = SimPOTrainer(tiny_dir, args, rows)
    trainer.scorer.parity_checked = True  # compared once in a run, before the first step
    with Watcher() as watcher, Reads() as reads:
        counter = _CountBySteps(watcher, reads)
        trainer.add_callback(counter)
        trainer.train()
    _, *steps = counter.steps  # before the first step the order of the pairs is drawn
    waits = [steps_reads.total() for steps_reads in steps]
    assert waits[:2] + waits[3:5] + waits[6:7] == [1] * 5, steps  # whether the update is made of finite numbers
    assert 2 <= waits[2] <= 1 + READS_OF_A_LOG and waits[5] <= 1 + READS_OF_A_LOG, steps


def test_the_watchers_see_what_waits() -> None:
    with Watcher() as watcher, Reads() as reads:
        tensor = torch.arange(3.0)
        tensor.sum().item(), tensor.tolist(), tensor.cpu(), tensor.to("cpu"), bool(tensor.sum() > 0)
        tensor[tensor > 1]
    assert {"item", "tolist", "cpu", "to", "__bool__"} <= set(reads.names)
    assert watcher.names["_local_scalar_dense"] == 2
    assert {"nonzero", "index"} & set(watcher.names)


@pytest.mark.gpu
def test_a_step_waits_for_the_gpu_once(rows, tiny_dir, make_args, monkeypatch) -> None:
    args = make_args(
        max_steps=6, total_train_batch_size=2, per_device_train_batch_size=1, logging_steps=6, use_cpu=False, bf16=True,
        optim="adamw_torch_fused",
    )  # fmt: skip

    class Strict(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            if state.global_step == 2:  # kernels are chosen and memory is laid out
                torch.cuda.set_sync_debug_mode("error")

        def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                torch.cuda.set_sync_debug_mode("default")

    def read(number: Any) -> float:
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        reads.append(float(number.item()))
        torch.cuda.set_sync_debug_mode(mode)
        return reads[-1]

    reads: list[float] = []
    monkeypatch.setattr(nonfinite, "read", read)
    trainer = SimPOTrainer(tiny_dir, args, rows)
    trainer.add_callback(Strict())
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.global_step == len(reads) == 6


def test_loader_workers_change_nothing(rows, tiny_dir, make_args) -> None:
    def losses(workers: int) -> list[float]:
        args = make_args(max_steps=3, total_train_batch_size=3, dataloader_num_workers=workers)
        trainer = SimPOTrainer(tiny_dir, args, rows)
        assert trainer.get_train_dataloader().num_workers == workers
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses(2) == losses(0)


@pytest.mark.parametrize("cuda", [False, True])
def test_memory_is_pinned_for_cuda_only(rows, tiny_dir, make_args, monkeypatch, cuda) -> None:
    trainer = SimPOTrainer(tiny_dir, make_args(), rows, rows)
    trainer.args.dataloader_pin_memory = True  # transformers' default; it goes off with use_cpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert trainer.get_train_dataloader().pin_memory is cuda
    assert trainer.get_eval_dataloader().pin_memory is cuda


def test_the_optimizer_is_the_fused_one(rows, tiny_dir, make_args) -> None:
    from simpo import SimPOConfig

    name = SimPOConfig(output_dir="unused", use_cpu=True).optim
    assert name == "adamw_torch_fused"
    trainer = SimPOTrainer(tiny_dir, make_args(optim=name), rows)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"] is True
