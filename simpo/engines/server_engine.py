"""Sampling through servers that speak OpenAI's protocol: vLLM, SGLang, TGI, `transformers serve` and others.

What can go wrong, and what follows:
    429, 503, 502                       the server is busy, or away behind a proxy: wait as long as it asks, try again
    no connection                       another server, or wait for this one; the run ends when none answers for long
    other 5xx, time-outs, broken JSON   try again, a bounded number of times; then the request has failed
    400, 413, 422, content filters      this request is refused: it has failed, the others go on
    401, 403, 404                       no request can succeed: the run ends
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2

from simpo.engines.base import Failure, FinishReason, Request, Result, Sample
from simpo.errors import EngineError

Api = Literal["tokens", "text", "chat"]

_BUSY = {429, 502, 503}
_REFUSED = {400, 413, 422}
_HOPELESS = {401, 403, 404, 405}
_ENDS: dict[Any, FinishReason] = {
    "stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "tool_calls": "stop", "length": "length",
}  # fmt: skip
_LONGEST_PAUSE = 30.0  # seconds


@dataclass(frozen=True)
class ServerOptions:
    """How servers are asked.

    Args:
        urls: base URLs, with their /v1; asked in turn.
        model: the name under which they serve the policy.
        api: `tokens` sends token ids to the completions endpoint (vLLM, SGLang); `text` the rendered prompt, without
            the BOS that the server's tokenizer puts before it; `chat` messages, which the server renders.
        max_in_flight: requests under way at once, over all servers.
        timeout: seconds for one answer.
        retries: further attempts after a fault of the server.
        patience: seconds to wait while no server answers, or while all are busy.
        pause: seconds before the first further attempt; doubled each time, up to 30, and drawn between half and whole.
        api_key: sent as a bearer token; it appears in no message.
        extra: further fields of each request.
    """

    urls: Sequence[str]
    model: str
    api: Api = "tokens"
    max_in_flight: int = 64
    timeout: float = 600.0
    retries: int = 6
    patience: float = 600.0
    pause: float = 0.5
    api_key: str | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict)


class _Fault(Exception):
    """An attempt failed; `wait` is how long the server asks to wait, in seconds, `busy` that it only has no room."""

    def __init__(self, text: str, *, busy: bool = False, wait: float = 0.0) -> None:
        super().__init__(text)
        self.busy = busy
        self.wait = wait


class _Unreachable(_Fault):
    """There was no connection."""


class ServerEngine:
    """Samples through one or several servers, many requests at once.

    Args:
        options: which servers, and how patient to be.

    Raises (while generating):
        EngineError: no server answers, or all are busy, for `patience` seconds; or they refuse the key or the model.
    """

    batch_size: int | None = None

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._turns = itertools.count()
        self._resting = dict.fromkeys(options.urls, 0.0)  # url -> moment until which another one is preferred
        self._answered = time.monotonic()  # when a server was last heard of
        self._served = self._answered  # when a request last got through
        self._numbers = itertools.count()
        self._waiting: dict[int, bool] = {}  # request -> whether its last attempt found the server busy
        self._client: httpx2.AsyncClient | None = None
        # A loop of its own, so that it works where one is running already; a daemon, so that nothing waits for it
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="simpo-servers", daemon=True)
        self._thread.start()

    def __enter__(self) -> ServerEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is under way and close the connections."""
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._give_up(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _give_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Sample each request; at most `max_in_flight` are under way, and a new one is taken when one is done."""
        numbered = enumerate(requests)
        self._answered = self._served = time.monotonic()
        under_way: dict[Future[Sample | Failure], int] = {}
        try:
            while True:
                for number, request in itertools.islice(numbered, self.options.max_in_flight - len(under_way)):
                    under_way[asyncio.run_coroutine_threadsafe(self.answer(request), self._loop)] = number
                if not under_way:
                    return
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield Result(under_way.pop(done), done.result())
        finally:
            for future in under_way:  # an error, or the caller has enough
                future.cancel()

    async def answer(self, request: Request) -> Sample | Failure:
        """One request, with all its attempts.

        Raises:
            EngineError: no request can succeed.
        """
        faults, began, number = 0, time.monotonic(), next(self._numbers)
        for attempt in itertools.count():
            url = self._next_url()
            try:
                found = await self._ask(url, request)
                self._waiting.pop(number, None)
                return found
            except _Fault as fault:
                self._judge(url, fault, began)
                faults += not (fault.busy or isinstance(fault, _Unreachable))
                self._waiting[number] = fault.busy
                waited = fault.busy and self._since(began) > self.options.patience
                if waited and self._all_wait():
                    raise EngineError(
                        f"no request got through for {self.options.patience:g} seconds: {fault}; what was done stays, "
                        "and the same command goes on from there"
                    ) from fault
                if faults > self.options.retries or waited:
                    self._waiting.pop(number, None)
                    return Failure(f"{fault} ({attempt + 1} attempts)")
                pause = min(self.options.pause * 2 ** min(attempt, 10), _LONGEST_PAUSE)
                await asyncio.sleep(max(random.uniform(pause / 2, pause), fault.wait))
        raise AssertionError

    def _all_wait(self) -> bool:
        """Whether servers have no room for anybody: nothing gets through, and not only a few odd requests are left."""
        enough = min(self.options.max_in_flight, max(2, self.options.max_in_flight // 2))
        return self._since(self._served) > self.options.patience and sum(self._waiting.values()) >= enough

    def _new_client(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self.options.api_key}"} if self.options.api_key else {}
        most = self.options.max_in_flight
        return httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(self.options.timeout, connect=min(30.0, self.options.timeout)),
            limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most),
        )

    def _judge(self, url: str, fault: _Fault, began: float) -> None:
        """Remember who answers; end the run where nobody has for too long."""
        if not isinstance(fault, _Unreachable):
            self._answered = time.monotonic()
            return
        self._resting[url] = time.monotonic() + 5 * self.options.pause
        if min(self._since(began), self._since(self._answered)) > self.options.patience:
            urls = ", ".join(self.options.urls)
            raise EngineError(
                f"no server answers ({urls}): {fault}; start one, and give the same command again to go on"
            )

    def _since(self, moment: float) -> float:
        return time.monotonic() - moment

    def _next_url(self) -> str:
        """The servers in turn, without those that could not be reached a moment ago unless all could not."""
        now = time.monotonic()
        urls = [url for url in self.options.urls if self._resting[url] <= now] or list(self.options.urls)
        return urls[next(self._turns) % len(urls)]

    async def _ask(self, url: str, request: Request) -> Sample | Failure:
        self._client = self._client or self._new_client()
        path = "/chat/completions" if self.options.api == "chat" else "/completions"
        try:
            response = await self._client.post(url.rstrip("/") + path, json=self.body(request))
        except httpx2.TimeoutException as error:
            if isinstance(error, httpx2.ConnectTimeout):
                raise _Unreachable(f"{url}: no connection in time") from error
            raise _Fault(f"{url}: no answer within {self.options.timeout:g} seconds") from error
        except httpx2.ConnectError as error:
            raise _Unreachable(f"{url}: {self._clean(str(error)) or 'no connection'}") from error
        except httpx2.HTTPError as error:  # broken off midway
            raise _Fault(f"{url}: {self._clean(str(error)) or type(error).__name__}") from error
        status = response.status_code
        if status == 200:
            self._answered = self._served = time.monotonic()
            return self._read(url, response)
        text = f"{url}: HTTP {status}: {self._clean(response.text)}"
        if status in _HOPELESS:
            raise EngineError(f"{text}; check the URL with its /v1, the model's name there, and the key")
        if status in _REFUSED:
            self._answered = time.monotonic()
            return Failure(text, refused=True)
        raise _Fault(text, busy=status in _BUSY, wait=_retry_after(response) if status in _BUSY else 0.0)

    def body(self, request: Request) -> dict[str, Any]:
        """What is sent for a request."""
        fields: dict[str, Any] = {
            "model": self.options.model,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        if self.options.api == "tokens":
            # servers take what they are not told from the model's generation_config.json: say that nothing else cuts
            fields |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
            fields |= {"stop_token_ids": list(request.stop_ids), "skip_special_tokens": True}
            fields |= {"prompt": list(request.prompt_ids), "return_token_ids": True}
        elif self.options.api == "text":
            assert request.text is not None
            fields["prompt"] = request.text
        else:
            assert request.messages is not None
            fields["messages"] = list(request.messages)
            keywords = dict(request.template_arguments)
            if "tools" in keywords:
                fields["tools"] = keywords.pop("tools")
            if keywords:
                fields["chat_template_kwargs"] = keywords
        return {**fields, **self.options.extra}

    def _read(self, url: str, response: httpx2.Response) -> Sample | Failure:
        try:
            answer = response.json()
            choice = answer["choices"][0]
            said = choice["message"] if self.options.api == "chat" else {"content": choice["text"]}
            text, refusal, usage = said.get("content"), said.get("refusal"), answer.get("usage") or {}
            if choice["finish_reason"] == "content_filter" or (refusal and not text):
                why = self._clean(str(refusal or "content filter"))
                return Failure(f"{url}: the model refuses to answer: {why}", refused=True)
            ids = choice.get("token_ids")
            tokens = len(ids) if ids is not None else int(usage.get("completion_tokens", -1))
            asked = usage.get("prompt_tokens")
            if not isinstance(text, str | None):
                raise TypeError(text)
            return Sample(
                text or "",
                _ENDS[choice["finish_reason"]],
                tokens,
                ids,
                prompt_tokens=None if asked is None else int(asked),
            )
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            shown = self._clean(response.text)
            raise _Fault(f"{url}: not an answer of this protocol ({type(error).__name__}: {error}): {shown}") from error

    def _clean(self, text: str) -> str:
        """A server's own words for a message: on one line, short, and without the key, which some repeat."""
        if self.options.api_key:
            text = text.replace(self.options.api_key, "***")
        line = " ".join(text.split())
        return line if len(line) <= 200 else line[:197] + "..."


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that a busy server asks to wait, at most a minute; dates are not read."""
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), 60.0)
    except ValueError:
        return 0.0
