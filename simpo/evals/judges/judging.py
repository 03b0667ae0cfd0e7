"""Asking a judge: every answer is on the disk before it is used, so nothing is asked, or paid for, twice."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from simpo.checks import check_url, is_number
from simpo.engines.base import Failure, Request, Sample
from simpo.engines.server_engine import ServerEngine, ServerOptions
from simpo.errors import ConfigError
from simpo.evals.judges.costs import Cost, Price, price_of, tokens_of
from simpo.evals.layouts import digest_of
from simpo.store import Record, Store

API_ERROR = "$ERROR$"
"""What both official programs write in place of an answer that never came."""

AGAIN = "/again"
_OPENAI = "api.openai.com"


@dataclass(frozen=True)
class JudgeServer:
    """Where a judge answers, how patient to be, and what it costs.

    Args:
        base_urls: base URLs, with their /v1, of servers with OpenAI's protocol.
        api_key_env: name of the environment variable that holds the key; needed for api.openai.com.
        max_in_flight: requests under way at once.
        timeout: seconds for one answer.
        retries: further attempts after a fault of the server.
        patience: seconds to wait while no server answers, or while all are busy.
        pause: seconds before the first further attempt; doubled each time.
        price_in, price_out: dollars per million tokens asked and answered; None: those of the shipped table.
        retry_errors: ask again what came to a fault or was refused in an earlier start.
        max_excluded: warn where more than so many % of the judgments had to be left out.

    Raises:
        ConfigError: a number is out of bounds, an address is none, or the key is not set.
    """

    base_urls: Sequence[str] = (f"https://{_OPENAI}/v1",)
    api_key_env: str | None = None
    max_in_flight: int = 16
    timeout: float = 600.0
    retries: int = 6
    patience: float = 600.0
    pause: float = 0.5
    price_in: float | None = None
    price_out: float | None = None
    retry_errors: bool = False
    max_excluded: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.base_urls, str) or not self.base_urls:
            raise ConfigError(f"base_urls: {self.base_urls!r} must be a list, e.g. [http://localhost:8000/v1]")
        for url in self.base_urls:
            check_url("base_urls", url)
            if urlsplit(url).hostname == _OPENAI and self.api_key_env is None:
                raise ConfigError(
                    f"api_key_env: is missing; {_OPENAI} needs a key: write OPENAI_API_KEY, and export it"
                )
        if self.api_key_env is not None and not os.environ.get(self.api_key_env):
            raise ConfigError(f"api_key_env: {self.api_key_env} is not set; export it")
        for key, least in (("max_in_flight", 1), ("retries", 0), ("patience", 0), ("pause", 0), ("max_excluded", 0)):
            if not is_number(getattr(self, key)) or getattr(self, key) < least:
                raise ConfigError(f"{key}: {getattr(self, key)!r} must be at least {least}")
        if not is_number(self.timeout) or self.timeout <= 0:
            raise ConfigError(f"timeout: {self.timeout!r} must be above 0 seconds")
        prices = [price for price in (self.price_in, self.price_out) if price is not None]
        if len(prices) == 1 or any(not is_number(price) or price < 0 for price in prices):
            raise ConfigError("price_in, price_out: give both, in dollars per million tokens, 0 or more")

    def price(self, model: str) -> Price | None:
        """Of this judge; None where nobody knows it."""
        return price_of(model, self.price_in, self.price_out)

    def options(self, model: str) -> ServerOptions:
        """For the engine."""
        return ServerOptions(
            list(self.base_urls),
            model,
            api="chat",
            max_in_flight=self.max_in_flight,
            timeout=self.timeout,
            retries=self.retries,
            patience=self.patience,
            pause=self.pause,
            api_key=os.environ[self.api_key_env] if self.api_key_env else None,
        )


class Call(NamedTuple):
    """One thing to ask: its name, the messages, and the bound of the answer in tokens. The name of a call that goes on
    from the answer to another one is that one's with `AGAIN` behind it."""

    key: str
    messages: list[dict[str, str]]
    max_tokens: int

    @property
    def digest(self) -> str:
        """Of the system and the user turn: the same for a call and the one that goes on from it."""
        return digest_of(self.messages[:2])


class Judge:
    """A model that is asked, and all its answers so far. Use it as a context manager.

    Args:
        model: its name on the servers.
        server: where it answers.
        folder: the answers are kept here, and gone on with.
        made_with: what all answers depend on, as JSON; a folder with others is refused.
        calls: all that will be asked first; an answer to one that reads otherwise now is taken out, those to calls
            that are not among them stay.
    """

    def __init__(
        self, model: str, server: JudgeServer, folder: str | Path, made_with: Mapping[str, Any], calls: Sequence[Call]
    ) -> None:
        self.model = model
        self.server = server
        self.replies: dict[str, Record] = {}
        asked = {call.key: call.digest for call in calls}

        def again(record: Record) -> bool:
            now = asked.get(record["call"].removesuffix(AGAIN), record["of"])
            return now != record["of"] or (server.retry_errors and record["error"] is not None)

        self._store = Store(folder, {"judge": model, **made_with}, again=again)
        self._stack = ExitStack()

    def __enter__(self) -> Judge:
        self._stack.enter_context(self._store)
        self.replies = {record["call"]: record for record in self._store.records()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def estimate(self, calls: Sequence[Call], answered: int) -> Cost:
        """Of those calls that have no answer yet, with so many tokens in each answer."""
        waiting = [call for call in calls if call.key not in self.replies]
        asked = tokens_of(message["content"] for call in waiting for message in call.messages)
        return Cost(len(waiting), asked, len(waiting) * answered)

    def ask(self, calls: Sequence[Call]) -> None:
        """Ask what has no answer yet; answers are in `replies` by the call's key, and on the disk, as they come.

        Raises:
            EngineError: no server answers for long, or they refuse the key or the model; what was answered stays.
            StoreError: the disk is full.
        """
        waiting = [call for call in calls if call.key not in self.replies]
        requests = [Request([], call.max_tokens, temperature=0.0, messages=call.messages) for call in waiting]
        if not waiting:
            return
        with (
            ServerEngine(self.server.options(self.model)) as engine,
            tqdm(total=len(waiting), unit="answer", desc=self.model) as bar,
        ):
            for number, outcome in engine.generate(requests):
                record = _record(waiting[number], outcome)
                self._store.append(record["call"], record)
                self.replies[record["call"]] = record
                bar.update()

    @property
    def spent(self) -> Cost:
        """On all answers so far, those of earlier starts too."""
        return sum((Cost(1, r["asked"], r["answered"], r["counted"]) for r in self.replies.values()), Cost())


def _record(call: Call, outcome: Sample | Failure) -> Record:
    record: Record = {"call": call.key, "of": call.digest, "text": None, "error": None, "refused": False,
                      "tstamp": time.time()}  # fmt: skip
    asked = tokens_of(message["content"] for message in call.messages)
    if isinstance(outcome, Failure):  # one that came to no answer may have been charged for; a refused one is not
        known = {"asked": 0, "counted": 1} if outcome.refused else {"asked": asked, "counted": 0}
        return record | {"error": outcome.error, "refused": outcome.refused, "answered": 0, **known}
    counted = outcome.prompt_tokens is not None and outcome.tokens >= 0
    return record | {
        "text": outcome.text,
        "asked": outcome.prompt_tokens if counted else asked,
        "answered": outcome.tokens if counted else tokens_of([outcome.text]),
        "counted": int(counted),
    }


def excluded_warning(counts: Mapping[str, int], causes: Sequence[str], total: int, most: float) -> list[str]:
    """A warning where more than `most` % of the judgments had to be left out, with the causes; else none."""
    left_out = {cause: counts[cause] for cause in causes if counts.get(cause)}
    share = 100 * sum(left_out.values()) / max(total, 1)
    if share <= most:
        return []
    why = ", ".join(f"{count} {cause.replace('_', ' ')}" for cause, count in left_out.items())
    return [f"{share:.1f}% of {total} judgments are left out ({why}): the numbers stand on the rest"]
