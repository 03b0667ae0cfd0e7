"""The shipped chat templates write exactly what their models expect, on hand-written expectations."""

from typing import Any

import pytest

from simpo.data.chat import TEMPLATE_DIR, resolve_chat_template, shipped_templates

SYSTEM = {"role": "system", "content": " Be brief.\n"}
QUESTION = {"role": "user", "content": " Hi {{x}} \n"}
ANSWER = {"role": "assistant", "content": "Hello.\n"}
FOLLOW_UP = {"role": "user", "content": "Bye"}


def render(name: str, *turns: dict[str, str], ask: bool = False) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (TEMPLATE_DIR / f"{name}.jinja").read_text()
    texts, _ = render_jinja_template(
        [list(turns)], chat_template=template, add_generation_prompt=ask, bos_token="<s>", eos_token="</s>"
    )
    return texts[0]


CONVERSATIONS = {
    "mistral": "[INST] Hi {{x}} [/INST] Hello. </s>[INST] Bye [/INST]",
    "gemma-2": (
        "<s><start_of_turn>user\nHi {{x}}<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n"
    ),
    "llama-3": (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi {{x}}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    ),
    "zephyr": "<|user|>\n Hi {{x}} \n</s>\n<|assistant|>\nHello.\n</s>\n<|user|>\nBye</s>\n",
    "chatml": (
        "<|im_start|>user\n Hi {{x}} \n<|im_end|>\n<|im_start|>assistant\nHello.\n<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
    ),
}
WITH_SYSTEM = {
    "mistral": "[INST] Be brief.\n\n Hi {{x}} [/INST]",
    "gemma-2": "<s><start_of_turn>user\nBe brief.\n\n Hi {{x}}<end_of_turn>\n",
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi {{x}}<|eot_id|>"
    ),
    "zephyr": "<|system|>\n Be brief.\n</s>\n<|user|>\n Hi {{x}} \n</s>\n",
    "chatml": "<|im_start|>system\n Be brief.\n<|im_end|>\n<|im_start|>user\n Hi {{x}} \n<|im_end|>\n",
}
GENERATION_PROMPT = {
    "mistral": "",
    "gemma-2": "<start_of_turn>model\n",
    "llama-3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "zephyr": "<|assistant|>\n",
    "chatml": "<|im_start|>assistant\n",
}
# What `tokenization: paper` renders of a response: the assistant's turn alone, where a BOS may come first.
ANSWER_ALONE = {
    "mistral": " Hello. </s>",
    "gemma-2": "<s><start_of_turn>model\nHello.<end_of_turn>\n",
    "llama-3": "<s><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>",
    "zephyr": "<|assistant|>\nHello.\n</s>\n",
    "chatml": "<|im_start|>assistant\nHello.\n<|im_end|>\n",
}


def test_every_template_is_expected_here() -> None:
    assert shipped_templates() == sorted(CONVERSATIONS)


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
def test_renders(name: str) -> None:
    assert render(name, QUESTION, ANSWER, FOLLOW_UP) == CONVERSATIONS[name]
    assert render(name, SYSTEM, QUESTION) == WITH_SYSTEM[name]
    assert render(name, ANSWER) == ANSWER_ALONE[name]


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
def test_generation_prompt_begins_the_answer(name: str) -> None:
    prompt = render(name, QUESTION, ask=True)
    assert prompt == render(name, QUESTION) + GENERATION_PROMPT[name]
    assert render(name, QUESTION, ANSWER).startswith(prompt)


@pytest.mark.parametrize("name", ["mistral", "gemma-2"])
def test_empty_system_turn_changes_nothing(name: str) -> None:
    # so the published runs of these two, which put one first, are the same as without it
    empty = {"role": "system", "content": ""}
    assert render(name, empty, QUESTION, ANSWER) == render(name, QUESTION, ANSWER)


@pytest.mark.parametrize("name", ["mistral", "gemma-2", "zephyr"])
def test_unknown_role_is_refused(name: str) -> None:
    with pytest.raises(Exception, match="turn 2 has role tool"):
        render(name, QUESTION, {"role": "tool", "content": "42"})


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
def test_resolves_by_name(name: str, tiny_tokenizer: Any) -> None:
    assert resolve_chat_template(name, tiny_tokenizer) == (TEMPLATE_DIR / f"{name}.jinja").read_text()


def test_llama_3_is_the_golden_tokenizers_own(tiny_tokenizer: Any) -> None:
    turns = [QUESTION, ANSWER, FOLLOW_UP]
    own = tiny_tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    shipped = resolve_chat_template("llama-3", tiny_tokenizer)
    assert own == tiny_tokenizer.apply_chat_template(
        turns, chat_template=shipped, tokenize=False, add_generation_prompt=True
    )
