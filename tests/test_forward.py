"""Packed and shared against two separate rows, on tiny models of each family: log-probs and gradients."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig, T5Config

from simpo.errors import ModelError
from simpo.forward import check_model_config, install_packed_forward
from simpo.model import add_adapter, build_policy
from tests.padded import packed_sums, padded_sums

FAMILIES = ("llama", "mistral", "gemma2", "gemma3", "qwen3", "phi3", "cohere", "granite")
LENGTHS = [(20, 7, 12), (1, 3, 30), (11, 15, 1)]


def _gradients(model, sums):
    model.zero_grad()
    # means rather than sums, as SimPO takes them, so that gradients are of order one
    (sums * torch.linspace(-1, 1, len(sums)) / 10).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _assert_same(packed, plain, pairs, shared):
    sums, twin = packed_sums(packed, pairs, shared), padded_sums(plain, pairs)
    lengths = torch.tensor([len(pair[key]) for pair in pairs for key in ("chosen_ids", "rejected_ids")])
    torch.testing.assert_close(sums / lengths, twin / lengths, atol=1e-5, rtol=0)
    ours, theirs = _gradients(packed, sums), _gradients(plain, twin)
    assert ours.keys() == theirs.keys() and ours
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_separate_rows(make_model, make_pairs, family, shared) -> None:
    plain = make_model(family)
    packed = install_packed_forward(copy.deepcopy(plain))
    _assert_same(packed, plain, make_pairs(LENGTHS), shared)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_with_gradient_checkpointing(make_model, make_pairs, family) -> None:
    plain = make_model(family)
    packed = install_packed_forward(copy.deepcopy(plain)).train()
    packed.gradient_checkpointing_enable({"use_reentrant": False})
    assert packed.is_gradient_checkpointing
    _assert_same(packed, plain, make_pairs(LENGTHS), True)


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_with_lora(make_model, make_pairs, family, modules_to_save) -> None:
    from peft import LoraConfig

    def adapted(model):
        torch.manual_seed(3)
        config = LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM",
            modules_to_save=modules_to_save,
        )  # fmt: skip
        return add_adapter(model, config)

    plain = make_model(family)
    packed = adapted(install_packed_forward(copy.deepcopy(plain)))
    _assert_same(packed, adapted(plain), make_pairs(LENGTHS), True)


def test_ordinary_calls_are_unchanged(make_model) -> None:
    for family in FAMILIES:
        plain = make_model(family)
        packed = install_packed_forward(copy.deepcopy(plain))
        ids = torch.tensor([[0, 0, 0, 5, 9, 17, 30, 31, 44, 7, 8, 9], list(range(60, 72))])
        mask = (ids > 0).long()
        kwargs = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        assert packed.generate(ids, **kwargs).tolist() == plain.generate(ids, **kwargs).tolist(), family
        logits = [m(input_ids=ids, attention_mask=mask).logits[mask.bool()] for m in (packed, plain)]
        torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_saved_model_carries_no_trace(make_model, tmp_path) -> None:
    packed = install_packed_forward(make_model("llama"))
    packed.save_pretrained(tmp_path)
    assert "simpo" not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(again(ids).logits, packed(ids).logits, atol=1e-5, rtol=1e-5)


def test_installing_twice_changes_nothing(make_model, make_pairs) -> None:
    model = install_packed_forward(make_model("llama"))
    before = packed_sums(model, make_pairs(LENGTHS), True)
    torch.testing.assert_close(packed_sums(install_packed_forward(model), make_pairs(LENGTHS), True), before)


@pytest.mark.parametrize(
    "config,words",
    [(T5Config(), "encoder-decoder"), (MambaConfig(), "recurrent"), (BloomConfig(), "AttentionInterface")],
)
def test_unserved_architectures_are_refused_from_the_config(config, words) -> None:
    with pytest.raises(ModelError, match=words):
        check_model_config(config, "some-model")


def test_lora_on_the_head_is_refused(make_model) -> None:
    from peft import LoraConfig

    model = install_packed_forward(make_model("llama"))
    with pytest.raises(ModelError, match="lora_target_modules"):
        add_adapter(model, LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))


def test_16_bit_full_fine_tuning_is_refused(make_model) -> None:
    with pytest.raises(ModelError, match="float32"):
        build_policy(make_model("llama").bfloat16(), bf16=True, fp16=False, deepspeed=False)
