"""use_liger_kernel: Liger's kernels in the layers, while the packed forward and its head stay."""

import importlib.machinery
import sys
from types import ModuleType

import pytest
import torch

from simpo import SimPOConfig, SimPOTrainer
from simpo.checks import find_problems
from simpo.errors import ConfigError, ModelError


def _texts(**values) -> list[str]:
    return [problem.text for problem in find_problems({"use_liger_kernel": True, **values})]


@pytest.fixture
def stub(monkeypatch) -> list[dict]:
    """A package liger_kernel that replaces model.forward as the real one does, and a machine that claims a GPU."""
    calls: list[dict] = []

    def apply(model, fused_linear_cross_entropy: bool = True, cross_entropy: bool = False, **kernels) -> None:
        calls.append({"model": model, **kernels})
        if fused_linear_cross_entropy or cross_entropy:
            model.forward = None

    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    for name in names:
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules[names[1]]._apply_liger_kernel_to_instance = apply
    sys.modules[names[2]].MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    monkeypatch.setattr("simpo.config.is_torch_cuda_available", lambda: True)
    return calls


def test_the_packed_forward_stays(stub, rows, tiny_dir, make_args) -> None:
    args = make_args(max_steps=2, use_cpu=False, use_liger_kernel=True, liger_kernel_config={"rope": False})
    trainer = SimPOTrainer(tiny_dir, args, rows)
    trainer.train()
    assert [call["model"] for call in stub] == [trainer.model]
    assert stub[0]["rope"] is False
    plain = SimPOTrainer(tiny_dir, make_args(max_steps=2), rows)
    plain.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(plain.state.log_history[0]["loss"], abs=1e-5)


def test_models_that_liger_does_not_know_are_refused(stub, rows, make_model, tiny_tokenizer, make_args) -> None:
    args = make_args(use_cpu=False, use_liger_kernel=True)
    with pytest.raises(ModelError, match="no kernels for cohere"):
        SimPOTrainer(make_model("cohere"), args, rows, processing_class=tiny_tokenizer)


@pytest.mark.parametrize("kernel", ["cross_entropy", "fused_linear_cross_entropy"])
def test_kernels_that_replace_the_head_are_refused(stub, kernel) -> None:
    (text,) = _texts(liger_kernel_config={kernel: True, "rope": False})
    assert f"liger_kernel_config: {kernel} " in text and "leave it out" in text
    assert not _texts(liger_kernel_config={kernel: False})
    config = SimPOConfig(output_dir="unused", bf16=False, use_liger_kernel=True)
    assert config.liger_kernel_config == {"cross_entropy": False, "fused_linear_cross_entropy": False}


def test_not_beside_torch_compile_nor_on_a_cpu(stub, monkeypatch) -> None:
    assert "keep one" in _texts(torch_compile=True)[0]
    assert "needs a GPU" in _texts(use_cpu=True)[0]
    monkeypatch.setattr("simpo.config.is_torch_cuda_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU was found"):
        SimPOConfig(output_dir="unused", bf16=False, use_liger_kernel=True)


def test_a_missing_package_names_the_extra(monkeypatch) -> None:
    monkeypatch.setattr("simpo.checks.find_spec", lambda name: None)
    assert "pip install 'simpo[liger]'" in _texts()[0]
    assert not find_problems({"use_liger_kernel": False})


def test_the_real_patch_leaves_the_packed_forward(make_model) -> None:
    patch = pytest.importorskip("liger_kernel.transformers.monkey_patch")
    from simpo.forward import install_packed_forward
    from simpo.model import check_liger_kernel

    model = install_packed_forward(make_model("phi3"))
    forward, head = model.forward, model.lm_head.forward
    check_liger_kernel(model)
    patch._apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False, rope=False)
    assert (model.forward, model.lm_head.forward) == (forward, head)
    assert "Liger" in repr(model.model.layers[0].input_layernorm)


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [True, False])
def test_losses_with_and_without(rows, tiny_dir, make_args, bf16) -> None:
    pytest.importorskip("liger_kernel")

    def losses(**settings) -> list[float]:
        trainer = SimPOTrainer(tiny_dir, make_args(max_steps=4, use_cpu=False, bf16=bf16, **settings), rows)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    plain = losses()  # first: Liger replaces functions of the whole process
    torch.manual_seed(0)
    assert losses(use_liger_kernel=True) == pytest.approx(plain, abs=0.03 if bf16 else 1e-3)
