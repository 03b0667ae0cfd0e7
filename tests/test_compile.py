"""torch_compile: the same losses, few compilations over packs of any length, plain names in checkpoints."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from simpo import SimPOTrainer
from simpo.errors import ConfigError, ModelError
from simpo.forward import install_packed_forward
from simpo.model import compile_layers
from simpo.packing import pack_pairs
from simpo.parity import MODEL_INPUTS
from tests import launching


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # else the rest would silently run uncompiled
        yield
    torch._dynamo.reset()


def _packs(make_pairs, number: int) -> list[dict]:
    """Packs of one to five pairs, all of other lengths."""
    rng = random.Random(0)
    packs = []
    for seed in range(number):
        lengths = [tuple(rng.randrange(3, 20) for _ in range(3)) for _ in range(1 + seed % 5)]
        pack = pack_pairs(make_pairs(lengths, seed=seed))
        packs.append({key: pack[key] for key in MODEL_INPUTS})
    return packs


def _losses_and_gradients(model, packs) -> list[list[torch.Tensor]]:
    found = []
    for pack in packs:
        model.zero_grad()
        loss = model(**pack).mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    return found


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_compiled_layers_agree_and_are_compiled_once(make_model, make_pairs, family, checkpointed) -> None:
    model = install_packed_forward(make_model(family)).train()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    packs = _packs(make_pairs, 10)
    expected = _losses_and_gradients(model, packs)
    names = set(model.state_dict())
    compiler = CompileCounterWithBackend("aot_eager")
    compile_layers(model, backend=compiler, checkpointed=checkpointed)
    first = _losses_and_gradients(model, packs[:2])
    after_two = compiler.frame_count
    rest = _losses_and_gradients(model, packs[2:])
    torch.testing.assert_close(first + rest, expected, atol=1e-5, rtol=1e-4)
    # four layers and ten lengths, but one set of graphs: before and behind the attention
    assert 2 <= after_two <= 12 and compiler.frame_count == after_two
    assert set(model.state_dict()) == names


def _logs(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _train(rows, tiny_dir, args, **options) -> SimPOTrainer:
    trainer = SimPOTrainer(tiny_dir, args, rows, rows, **options)
    trainer.train()
    return trainer


def _assert_trained_alike(ours, theirs, tolerance: float = 1e-5) -> None:
    for one, other in zip(_logs(ours), _logs(theirs), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=tolerance)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "checkpointed"), [(False, False), (True, True)], ids=["full", "lora"])
def test_a_compiled_run_is_the_same_run(rows, tiny_dir, make_args, adapter, checkpointed) -> None:
    from peft import LoraConfig

    def train(steps: int, **compiled) -> SimPOTrainer:
        torch.manual_seed(0)  # of the adapter
        options = {"peft_config": LoraConfig(r=4, task_type="CAUSAL_LM")} if adapter else {}
        sizes = {"max_steps": steps, "total_train_batch_size": 3, "per_device_train_batch_size": 1}
        return _train(rows, tiny_dir, make_args(gradient_checkpointing=checkpointed, **sizes, **compiled), **options)

    plain = train(10)
    assert not counters["stats"]
    compiled = train(10, torch_compile_backend="aot_eager")
    graphs = counters["stats"]["unique_graphs"]
    assert 2 <= graphs <= 16  # packs and the check's ordinary rows, with and without gradients; 11 when written
    _assert_trained_alike(compiled, plain)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}], ids=["plain", "checkpointed"])
def test_a_run_compiled_by_inductor_is_the_same_run(rows, tiny_dir, make_args, settings) -> None:
    options = {"max_steps": 4, "total_train_batch_size": 3, **settings}
    compiled = _train(rows, tiny_dir, make_args(torch_compile=True, **options))
    assert compiled.args.torch_compile_backend == "inductor" and counters["stats"]["unique_graphs"] >= 2
    _assert_trained_alike(compiled, _train(rows, tiny_dir, make_args(**options)))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("bf16", [True, False])
def test_a_compiled_run_is_the_same_run_on_a_gpu(rows, tiny_dir, make_args, bf16) -> None:
    options = {"max_steps": 4, "total_train_batch_size": 3, "use_cpu": False, "bf16": bf16}
    compiled = _train(rows, tiny_dir, make_args(torch_compile=True, **options))
    plain = _train(rows, tiny_dir, make_args(**options))
    for one, other in zip(_logs(compiled), _logs(plain), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=0.02 if bf16 else 1e-4)


def test_checkpoints_have_plain_names_and_the_whole_model_is_left_alone(rows, tiny_dir, make_args, tmp_path) -> None:
    args = make_args(max_steps=1, torch_compile_backend="eager", save_strategy="steps", save_steps=1)
    trainer = _train(rows, tiny_dir, args)
    assert not isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule)
    saved = load_file(tmp_path / "out" / "checkpoint-1" / "model.safetensors")
    assert set(saved) <= set(trainer.model.state_dict())
    assert not any("_orig_mod" in name for name in saved)


def test_whole_models_are_not_compiled_by_accelerate(rows, tiny_dir, make_args, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")  # what `accelerate launch --dynamo_backend` says
    with pytest.raises(ConfigError, match="torch_compile: true"):
        SimPOTrainer(tiny_dir, make_args(), rows)


def test_settings_of_the_compiler(make_args) -> None:
    for mode in ("reduce-overhead", "max-autotune"):
        with pytest.raises(ConfigError, match="CUDA graphs"):
            make_args(torch_compile_mode=mode)
    with pytest.raises(ConfigError, match="'inducter' is unknown"):
        make_args(torch_compile_backend="inducter")
    args = make_args(torch_compile_mode="max-autotune-no-cudagraphs")
    assert args.torch_compile and args.torch_compile_backend == "inductor"
    assert args.tf32 is False and make_args().tf32 is None  # transformers would turn it on unasked


def test_a_model_without_a_list_of_layers_is_refused(make_model) -> None:
    model = make_model("llama")
    model.config.num_hidden_layers += 1
    with pytest.raises(ModelError, match="no list of 5 layers"):
        compile_layers(model, backend="eager")


@pytest.mark.multiprocess
@pytest.mark.parametrize("stage", [2, 3])
def test_compiled_layers_under_deepspeed(tmp_path, stage) -> None:
    reports = []
    for name, settings in (("plain", ()), ("compiled", ('torch_compile_backend="aot_eager"',))):
        out = tmp_path / f"{name}.json"
        script = launching.WORKERS / "trajectory.py"
        launching.deepspeed(stage, tmp_path, script, str(out), "per_device_train_batch_size=2", *settings)
        reports.append(json.loads(out.read_text()))
    plain, compiled = reports
    assert compiled["engine"] == plain["engine"] == f"DeepSpeedEngine stage {stage} x 2"
    assert compiled["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    assert compiled["grad_norms"] == pytest.approx(plain["grad_norms"], rel=1e-4)
