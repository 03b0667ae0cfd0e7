"""Fixtures of the data tests: tokenizers and templates of several styles, and a cache of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

GOLDEN_TINY = Path(__file__).parents[1] / "golden" / "tiny"
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"

# Small templates in the styles that models use. The Llama-3 one is the tokenizer's own.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}" + CHATML
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def conversation(prompt: list[Any], chosen: str, rejected: str) -> dict[str, Any]:
    """A row of whole conversations."""
    return {"chosen": [*prompt, assistant(chosen)], "rejected": [*prompt, assistant(rejected)]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    """make_tokenizer(template=None, bos=True, adds_bos=False): the golden tokenizer with other habits."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    def make(template: str | None = None, *, bos: bool = True, adds_bos: bool = False) -> Any:
        backend = Tokenizer.from_file(str(GOLDEN_TINY / "tokenizer.json"))
        if adds_bos:
            backend.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=BOS if bos else None, eos_token=EOS, pad_token="<|pad|>"
        )
        own = AutoTokenizer.from_pretrained(GOLDEN_TINY).chat_template
        tokenizer.chat_template = own if template is None else template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def metaspace_tokenizer() -> Any:
    """A tokenizer of the SentencePiece kind: it puts a space before the first word of every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    text = "user: which way is north\n\nassistant: up on most maps, and down on others! yes no the end ?.,:\n"
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"])
    backend.train_from_iterator([text] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
