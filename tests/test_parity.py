"""The question that every run asks its model before the first step."""

import pytest
import torch
from transformers import RobertaConfig, RobertaForCausalLM

from simpo.attention.backends import attend
from simpo.errors import ModelError
from simpo.forward import install_packed_forward
from simpo.parity import check_parity

CPU = {"vocabulary": 200, "device": torch.device("cpu")}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "qwen3", "phi3", "cohere", "granite"])
def test_served_families_agree(make_model, family) -> None:
    model = install_packed_forward(make_model(family)).train()
    check_parity(model, **CPU, exact=True)
    assert model.training


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "qwen3", "phi3"])
def test_a_window_that_is_off_by_one_is_found(make_model, family, monkeypatch) -> None:
    model = install_packed_forward(make_model(family))
    check_parity(model, **CPU, exact=True, window=8)

    def off_by_one(*states, window, **options):
        return attend(*states, window=window and window + 1, **options)

    monkeypatch.setattr("simpo.forward.attend", off_by_one)
    with pytest.raises(ModelError, match="differs from its ordinary forward"):
        check_parity(model, **CPU, exact=True, window=8)


def test_long_prompts_ask_for_few_logits(make_model, monkeypatch) -> None:
    model = install_packed_forward(make_model("llama"))
    monkeypatch.setattr("simpo.parity._SHORT_WINDOW", 5)
    seen = []
    model.get_output_embeddings().register_forward_hook(
        lambda _m, inputs, _o: seen.append(inputs[0].shape[:-1].numel())
    )
    check_parity(model, **CPU, exact=True)
    assert sorted(seen) == [4, 5, 7]


def test_bfloat16_rounding_is_no_disagreement(make_model) -> None:
    check_parity(install_packed_forward(make_model("llama")).bfloat16(), **CPU, exact=False)


def test_a_transform_before_the_head_is_found() -> None:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        is_decoder=True,
    )
    model = RobertaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    with pytest.raises(ModelError, match="differs from its ordinary forward"):
        check_parity(install_packed_forward(model), **CPU, exact=False)


def test_a_wrong_scale_of_the_logits_is_found(make_model) -> None:
    model = install_packed_forward(make_model("granite"))
    model.config.logits_scaling = 1.0  # the ordinary forward reads it on every call, the head at installation
    with pytest.raises(ModelError):
        check_parity(model, **CPU, exact=True)
