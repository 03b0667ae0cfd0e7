"""What a family's tests need: conversations, a small tokenizer with its habits, and texts written out by hand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AddedToken, PreTrainedTokenizerFast

TEXT = """Which way is north? Up on most maps, and down on others.
It is the way that a compass points, is it not? You may ask the user or the assistant again.
Be kind to them. Hello and hi; what is the weather like in Oslo today? It is 7 C there.\n\n\nNow then  """

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather now.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


QUESTION = turn("user", "Which way is north?")
PROMPTS: dict[str, list[dict[str, Any]]] = {
    "single": [QUESTION],
    "multi": [turn("user", "Hi"), turn("assistant", "Hello."), QUESTION],
    "system": [turn("system", "Be kind."), QUESTION],
    "empty system": [turn("system", ""), QUESTION],
    "tool": [
        turn("user", "Weather?"),
        {"role": "assistant", "tool_calls": [CALL]},
        turn("tool", "7 C", name="get_weather", tool_call_id="abcdefghi"),
    ],
}
"""Situation -> prompt; the tool schema goes with `tool`."""

ANSWERS = {
    "plain": "Up.",
    "trailing spaces": "Up.  ",
    "leading space": " Up.",
    "leading newline": "\nUp.",
    "non-Latin": "北です。",
    "emoji": "👍🏽 up",
    "end inside": "Up.{end} More.",
}
"""Kind of answer -> its text, where {end} is the family's end of turn. Each stands behind the prompt `single`."""

KEPT = {**ANSWERS, "end inside": "Up."}
TRIMMED = {**KEPT, "trailing spaces": "Up.", "leading space": "Up.", "leading newline": "Up."}
"""What a response holds of it before the end of turn: all of it, or without white space around it."""

PAPER_KEPT = ANSWERS
PAPER_TRIMMED = {**TRIMMED, "end inside": "Up.{end} More."}
"""The same in `paper`, where nothing is cut behind an end of turn."""


@dataclass(frozen=True)
class Family:
    """A family's template and tokenizer, and what must come of the conversations above.

    Args:
        name: of the model family.
        tokenizer: made once, with the template in it.
        prompts: situation -> the rendered prompt, with ¦ where the generation prompt begins; or a drop cause.
        end: text of the end of turn.
        response: what a `standard` response reads, {} being the answer.
        paper: what a `paper` response reads; or a drop cause.
        answers, paper_answers: what stands for {} by the kind of answer; with the end of turn behind it, all there is.
        paper_first, paper_last: what a `paper` prompt has before and behind the rendered one.
        arguments: the row's chat_template_kwargs.
    """

    name: str
    tokenizer: PreTrainedTokenizerFast
    prompts: Mapping[str, str]
    end: str
    response: str
    paper: str
    answers: Mapping[str, str] = field(default_factory=lambda: KEPT)
    paper_answers: Mapping[str, str] = field(default_factory=lambda: PAPER_KEPT)
    paper_first: str = ""
    paper_last: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def row(self, situation: str, answer: str = "plain") -> dict[str, Any]:
        text = ANSWERS[answer].replace("{end}", self.end)
        row = {
            "prompt": PROMPTS[situation],
            "chosen": [turn("assistant", text)],
            "rejected": [turn("assistant", "Down.")],
        }
        return {**row, "tools": [TOOL] if situation == "tool" else None, "chat_template_kwargs": dict(self.arguments)}

    def standard_response(self, answer: str) -> str:
        text = self.answers[answer]
        return text if text.endswith(self.end) else self.response.replace("{}", text)

    def standard_prompt(self, situation: str) -> str:
        return self.prompts[situation].replace("¦", "")

    def paper_prompt(self, situation: str) -> str:
        return self.paper_first + self.prompts[situation].split("¦")[0] + self.paper_last


def token_text(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """What tokens say where they stand: behind another token no decoder takes a leading space away."""
    eos = str(tokenizer.eos_token)
    text = tokenizer.decode([tokenizer.eos_token_id, *ids], clean_up_tokenization_spaces=False)
    assert isinstance(text, str) and text.startswith(eos)
    return text.removeprefix(eos)


def library_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def byte_level(template: str, *specials: str | AddedToken, eos: str, **habits: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of the GPT-2 kind: Llama 3, Qwen, Phi-4."""
    backend = Tokenizer.from_str(_byte_level_backend())
    return _finish(backend, template, specials, eos=eos, **habits)


def sentence_piece(
    template: str,
    *specials: str | AddedToken,
    spaces: Literal["prepend", "first", "none"],
    eos: str,
    **habits: Any,
) -> PreTrainedTokenizerFast:
    """A tokenizer of the SentencePiece kind, with a space before the first word of every piece, of the text, or none.

    Mistral 0.1 and 0.2, Zephyr and Phi-3 prepend; Mistral 0.3 does so at the beginning only; Gemma never does.
    """
    backend = Tokenizer.from_str(_sentence_piece_backend())
    if spaces == "first":
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif spaces == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps if spaces == "none" else [*steps, decoders.Strip(" ", 1, 0)])
    return _finish(backend, template, specials, eos=eos, **habits)


def _finish(
    backend: Tokenizer, template: str, specials: Any, *, eos: str, bos: str | None = None, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.add_tokens(
        [token if isinstance(token, AddedToken) else AddedToken(token, special=True) for token in specials]
    )
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = template
    return tokenizer


@cache
def _byte_level_backend() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [TEXT] * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return backend.to_str()


@cache
def _sentence_piece_backend() -> str:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(TEXT.splitlines() * 3, trainer)
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    state["model"].update(byte_fallback=True, fuse_unk=True)
    return json.dumps(state)
