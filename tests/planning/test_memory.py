"""Parts of a GPU's memory: exact where they are arithmetic, and sane against what is known of large models."""

from typing import Any

import pytest

from simpo.flops import PairLengths
from simpo.planning.changes import lora, proposals
from simpo.planning.engine import Engine
from simpo.planning.gpus import find_gpu
from simpo.planning.memory import Case, held_by, memory_of, state_bytes
from simpo.planning.sizes import count_sizes
from tests.planning.models import llama_8b, llama_70b, small

PAIR = PairLengths(172, 331, 312)
N = 8_030_261_248  # as the model's card says: 8.03 billion


def case_8b(engine: Engine = Engine("zero3", 8), pairs: int = 4, **changes: Any) -> Case:  # noqa: B008
    return Case(llama_8b(), engine, (PAIR,) * pairs, checkpointing=True, **changes)


def filled(tokens: int) -> tuple[PairLengths, ...]:
    return (PAIR,) * max(1, tokens // sum(PAIR))


def test_parameters_of_llama_3() -> None:
    sizes = count_sizes(llama_8b())
    assert sizes.total == sizes.trained == N
    assert sizes.embedding == 128_256 * 4096 and sizes.tail == 128_256 * 4096 + 4096
    assert 32 * sizes.layer + sizes.embedding + sizes.tail == N
    assert count_sizes(llama_70b()).total == 70_553_706_496


def test_tied_weights_count_once() -> None:
    tied, untied = (count_sizes(small(tie_word_embeddings=on)) for on in (True, False))
    assert untied.total - tied.total == 1024 * 128
    assert tied.tail == untied.tail == 1024 * 128 + 128  # the final norm, and the head that FSDP2 gathers with it
    held = [held_by(Case(small(tie_word_embeddings=on), Engine("fsdp2", 2), (PAIR,))) for on in (True, False)]
    assert held[0].gathered == held[1].gathered


def test_adapters_are_what_is_trained() -> None:
    sizes = count_sizes(small(), lora(4))
    # r (in + out) for q, k, v, o, gate, up, down of 6 layers
    maps = [(128, 128), (128, 64), (128, 64), (128, 128), (128, 384), (128, 384), (384, 128)]
    assert sizes.trained == 6 * 4 * sum(map(sum, maps))
    assert sizes.linear == 6 * sum(a * b for a, b in maps) and sizes.largest_linear == 128 * 384
    assert sizes.frozen == count_sizes(small()).total


@pytest.mark.parametrize(
    ("engine", "weights", "gradients", "states"),
    [
        (Engine("single", 1), 4 * N, 0, 8 * N),
        (Engine("ddp", 8), 4 * N, 0, 8 * N),
        (Engine("zero2", 8), 2 * N, 2 * N / 8, 12 * N / 8),
        (Engine("zero3", 8), 2 * N / 8, 2 * N / 8, 12 * N / 8),
        (Engine("zero3", 64), 2 * N / 64, 2 * N / 64, 12 * N / 64),
        (Engine("fsdp2", 8), 4 * N / 8, 4 * N / 8, 8 * N / 8),
        (Engine("zero3", 8, offload_optimizer=True), 2 * N / 8, 0, 0),
        (Engine("zero3", 8, offload_optimizer=True, offload_params=True), 0, 0, 0),
    ],
)
def test_what_an_engine_holds(engine: Engine, weights: float, gradients: float, states: float) -> None:
    held = held_by(case_8b(engine))
    assert (held.weights, held.gradients, held.states) == pytest.approx((weights, gradients, states))
    assert held.buffers == {"single": 0, "ddp": 4 * N, "fsdp2": held.buffers}.get(engine.kind, 2 * 500_000_000)


def test_buckets_of_zero_do_not_depend_on_the_model() -> None:
    """DeepSpeed allocates them in full, for adapters too; ZeRO-2 frees them before the update."""
    for engine in (Engine("zero2", 8), Engine("zero3", 8)):
        assert held_by(case_8b(engine, adapter=lora())).buffers == 1e9
        assert held_by(case_8b(engine._replace(bucket=None))).buffers == 2 * 4096**2
    lists = {kind: memory_of(Case(small(), Engine(kind, 2), (PairLengths(1, 1, 1),), optim="adamw_torch", cuda=False))
             for kind in ("zero2", "zero3")}  # fmt: skip
    assert [memory.parts["communication"] for memory in lists.values()] == [1e9, 1e9]
    huge = {kind: memory_of(case_8b(Engine(kind, 1), 1, optim="adamw_torch")) for kind in ("zero2", "zero3")}
    assert {memory.moment for memory in huge.values()} == {"the optimizer's update"}
    assert [memory.parts["communication"] for memory in huge.values()] == [0, 1e9]


def test_a_quantised_base() -> None:
    whole = case_8b(Engine("single", 1), adapter=lora())
    four, nested, eight = (whole.changed(bits=bits, nested=on) for bits, on in ((4, False), (4, True), (8, False)))
    linear, rest = whole.sizes.linear, whole.sizes.frozen - whole.sizes.linear
    trained = 4 * whole.sizes.trained
    assert held_by(whole).weights == 2 * (linear + rest) + trained
    assert held_by(four).weights == pytest.approx(linear * (0.5 + 1 / 16) + 2 * rest + trained)
    assert held_by(nested).weights < held_by(four).weights < held_by(eight).weights == linear + 2 * rest + trained
    assert 5.5 < held_by(nested).weights / 1e9 < 6.5  # a model card of an NF4 Llama-3-8B says 5.7 GB


def test_states_of_optimizers() -> None:
    assert [state_bytes(name) for name in ("adamw_torch", "adamw_torch_fused", "lion_32bit")] == [8, 8, 4]
    assert 2 < state_bytes("paged_adamw_8bit") < 2.1


def test_llama_8b_trains_on_eight_h100_as_published() -> None:
    """The published runs: ZeRO-3, 2 pairs a micro-batch, checkpointing, 8 H100."""
    memory = memory_of(case_8b(pairs=2, optim="adamw_torch"))
    assert memory.total < find_gpu("h100-80gb").memory
    assert 16 * N / 8 < memory.tensors < 16 * N / 8 + 15e9


def test_llama_8b_on_one_consumer_gpu_needs_qlora() -> None:
    capacity = find_gpu("rtx4090").memory
    case = case_8b(Engine("single", 1))
    assert memory_of(case).total > 5 * capacity
    found = proposals(case, capacity, longest=sum(PAIR), fill=filled)
    by_name = {" + ".join(one.names): one for one in found}
    assert "load_in_4bit: true" in by_name["QLoRA"].lines and by_name["QLoRA"].total < capacity / 2
    assert all(one.total <= capacity for one in found)
    several = "simpo train --accelerate zero3_nodes --num_machines 2 --num_processes 16"
    assert found[-1].names[0] == "16 GPUs" and found[-1].lines[0] == several


def test_more_gpus_than_a_machine_has_are_started_on_several() -> None:
    case = case_8b(Engine("zero3", 8))
    found = proposals(case, int(0.8 * memory_of(case).total), longest=sum(PAIR), fill=filled)
    assert found[-1].lines[0] == "simpo train --accelerate zero3_nodes --num_machines 2 --num_processes 16"


def test_sharding_is_started_on_the_gpus_that_are_there() -> None:
    found = proposals(case_8b(Engine("ddp", 4)), find_gpu("h100-80gb").memory, longest=sum(PAIR), fill=filled)
    by_name = {" + ".join(one.names): one for one in found}
    assert by_name["sharded weights"].lines == ["simpo train --accelerate zero3 --num_processes 4"]


def test_llama_70b_does_not_train_in_full_on_eight_h100() -> None:
    gpu = find_gpu("h100-80gb")
    case = Case(llama_70b(), Engine("zero3", 8), (PAIR,), checkpointing=True)
    assert memory_of(case).tensors > 16 * 70.5e9 / 8 > gpu.memory
    assert memory_of(case.changed(engine=Engine("zero3", 32))).total < gpu.memory


def test_proposals_are_the_smallest_and_in_order() -> None:
    case = case_8b(pairs=64).changed(checkpointing=False)
    needed = memory_of(case).total
    without = memory_of(case.changed(checkpointing=True)).total
    found = proposals(case, (needed + without) / 2, longest=sum(PAIR), fill=filled)
    assert found[0].names == ["checkpointing"] and found[0].lines == ["gradient_checkpointing: true"]
    assert found[1].names == ["smaller micro-batches"]
    assert found[1].lines == [f"max_tokens_per_microbatch: {found[1].case.tokens}"]


@pytest.mark.parametrize("engine", [Engine("ddp", 2), Engine("zero2", 2), Engine("zero3", 2), Engine("fsdp2", 2)])
def test_more_tokens_need_more_and_checkpointing_less(engine: Engine) -> None:
    few, many = (Case(small(), engine, (PAIR,) * pairs) for pairs in (2, 20))
    assert memory_of(few).tensors < memory_of(many).tensors
    assert memory_of(many.changed(checkpointing=True)).tensors < memory_of(many).tensors
    assert memory_of(many.changed(shared=False)).tensors > memory_of(many).tensors


def test_the_update_can_be_the_worst_moment() -> None:
    lists = memory_of(case_8b(Engine("single", 1), 1, optim="adamw_torch"))
    fused = memory_of(case_8b(Engine("single", 1), 1, optim="adamw_torch_fused"))
    assert fused.moment != lists.moment == "the optimizer's update"
    assert lists.tensors == pytest.approx(20 * N)
    assert sum(lists.parts.values()) == lists.tensors == lists.total - lists.reserve
