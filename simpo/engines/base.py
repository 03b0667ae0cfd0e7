"""What every engine takes and gives, so that callers do not know where a model runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Request:
    """One response to sample.

    Args:
        prompt_ids: the prompt as the model is given it, with its BOS.
        max_new_tokens: bound of the response, with its end token.
        temperature: of the softmax; 0 takes the most likely token (the one with the lowest id of several).
        top_p: keep the smallest set of most likely tokens with so much probability together; 1 keeps all.
        seed: of this response's draws.
        stop_ids: tokens that end the response; empty for none.
        text: the prompt rendered as text, for servers that take no ids.
        messages: the prompt as messages, for servers that render it themselves.
        template_arguments: what the chat template is given beside messages, for the same servers.
    """

    prompt_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """A response.

    Args:
        text: without the end token and other special tokens.
        finish_reason: `stop` where the model ended it, `length` where it was cut.
        tokens: how many tokens were sampled, with the end token; -1 where a server does not say.
        token_ids: these tokens; None where a server does not say.
        logprobs: their log-probs under the policy (temperature 1, all tokens) in nats; None where not computed.
        prompt_tokens: how many tokens the prompt had for a server; None where it does not say.
    """

    text: str
    finish_reason: FinishReason
    tokens: int
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that came to nothing; the others go on.

    Args:
        error: why, on one line.
        refused: whether the server would not answer this request; else it failed in all its attempts.
    """

    error: str
    refused: bool = False


class Result(NamedTuple):
    """What became of the request of this number, counted from 0 as the engine was given them."""

    number: int
    outcome: Sample | Failure


class Engine(Protocol):
    """Samples responses. Use it as a context manager, or call `close`."""

    batch_size: int | None
    """Requests that are computed together, consecutive ones: to the last bit a response depends on which these are.
    None where the engine itself decides, and the caller cannot keep them together."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Sample each request; results come as they are ready, in any order. Requests are taken as they are needed."""

    def close(self) -> None:
        """Let go of the device or of connections."""
