"""A model that answers a conversation as a stream: its own template, exactly one BOS, every end token that it has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from transformers import GenerationConfig, TextStreamer

from simpo.data.schema import Message
from simpo.engines.transformers_engine import load_transformers_engine
from simpo.errors import ConfigError, DataError, ModelError
from simpo.sampling.policy import Policy, on_cpu
from simpo.sampling.prompts import Prompt
from simpo.sampling.settings import PolicySettings

TEMPERATURE = 0.7
"""Where neither the user nor the model's generation config says."""


@dataclass(kw_only=True)
class ChatSettings:
    """How `simpo chat` samples.

    Args:
        temperature: 0 is greedy; None: that of the model's generation config, else 0.7.
        top_p: keep the smallest set of most likely tokens with so much probability; None: that of the model's
            generation config, else 1.
        max_new_tokens: bound of an answer.
        seed: of every answer: the same conversation gets the same one again; None: another each time.
        chat_template: jinja text, a .jinja file or the name of a shipped template; None: the tokenizer's.
        dtype: of the weights; None: bfloat16, and float32 on a CPU.
        use_cpu: compute on the CPU although there is another device.
        trust_remote_code: as for training.

    Raises:
        ConfigError: a number is out of bounds.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_new_tokens: int = 1024
    seed: int | None = None
    chat_template: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    use_cpu: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature < 0:
            raise ConfigError(f"--temperature {self.temperature:g} must be 0 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p {self.top_p:g} must be above 0 and at most 1; 1 keeps every token")
        if self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens {self.max_new_tokens} must be at least 1")

    def policy(self, model: str) -> PolicySettings:
        """The settings of one model."""
        return PolicySettings(
            model_name_or_path=model,
            chat_template=self.chat_template,
            dtype=self.dtype,
            use_cpu=self.use_cpu,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass
class Conversation:
    """The turns so far, and the system turn before them."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """What the template is given."""
        first = [cast(Message, {"role": "system", "content": self.system})] if self.system else []
        return [*first, *self.turns]

    def add(self, question: str, answer: str) -> None:
        """Put an exchange behind the others."""
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


class Speaker:
    """One model that answers.

    Args:
        name: hub name or directory, also of an adapter.
        settings: how it samples.

    Raises:
        ConfigError, DataError: the chat template is missing, cannot be read, or does not work.
        ModelError: the model cannot be loaded.
    """

    def __init__(self, name: str, settings: ChatSettings) -> None:
        self.name, self.settings = name, settings
        policy = settings.policy(name)
        self.policy = Policy(policy)
        self.prompt([{"role": "user", "content": "Hello"}])  # what is wrong with a template is said before weights load
        engine = load_transformers_engine(
            name,
            batch_size=1,
            device="cpu" if on_cpu(policy) else None,
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
        )
        self.model: Any = engine.model

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """A conversation as the model is given it.

        Raises:
            DataError: the template refuses it or leaves a turn out, or it leaves no room for an answer.
        """
        prompt = Prompt("", 0, list(messages))
        self.policy.prepare([prompt])
        if prompt.error is not None:
            raise DataError(f"{self.name}: {prompt.error}")
        return prompt

    def generation_config(self, prompt: Prompt) -> GenerationConfig:
        """The model's own, with the user's sampling, the end tokens, and no more tokens than fit."""
        own = self.model.generation_config
        temperature = _first(self.settings.temperature, own.temperature, TEMPERATURE)
        changes: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            top_p = _first(self.settings.top_p, own.top_p, 1.0)
            # 0 is off; left out, transformers would keep 50 tokens
            changes = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": _first(own.top_k, 0)}
        stops = list(self.policy.stop_ids)
        config = copy.deepcopy(own)
        config.update(
            **changes,
            max_length=None,
            max_new_tokens=self.policy.room(prompt, self.settings.max_new_tokens),
            eos_token_id=stops or None,
            pad_token_id=_first(self.policy.tokenizer.pad_token_id, *stops, 0),
        )
        return config

    def answer(self, messages: Sequence[Message], say: Callable[[str], None]) -> str:
        """Answer, and say each piece of text as it comes; KeyboardInterrupt ends the answer where it is.

        Raises:
            DataError: as for `prompt`.
            ModelError: the model's logits are no numbers.
        """
        prompt = self.prompt(messages)
        if self.settings.seed is not None:
            torch.manual_seed(self.settings.seed)
        streamer = _Streamer(self.policy.tokenizer, say)
        ids = torch.tensor([prompt.ids], device=self.model.device)
        try:
            with torch.inference_mode():
                self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=self.generation_config(prompt),
                    streamer=streamer,
                )
        except KeyboardInterrupt:
            streamer.end()
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise ModelError(f"{self.name}: logits are NaN or infinite; try --dtype float32") from error
        return "".join(streamer.pieces).strip()


class _Streamer(TextStreamer):
    """Passes text on instead of printing it."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.say = say
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.pieces else text.lstrip()  # some tokenizers begin a text with a space
        if text:
            self.pieces.append(text)
            self.say(text)


def _first(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
