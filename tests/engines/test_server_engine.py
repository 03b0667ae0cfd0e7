"""Sampling through servers: what is sent, and every way in which a server fails."""

import json
import socket
import threading
import time
from collections import Counter
from typing import Any

import pytest

from simpo.engines.base import Failure, Request, Sample
from simpo.engines.server_engine import ServerEngine, ServerOptions
from simpo.errors import EngineError
from tests.engines.serving import Handler, Server, echo


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def requests_of(count: int, **options: Any) -> list[Request]:
    return [Request([7, number], 16, 0.8, 0.95, seed=number, stop_ids=(2, 9), **options) for number in range(count)]


def run(urls: list[str], requests: list[Request], **options: Any) -> list[Sample | Failure]:
    options = {"model": "m", "pause": 0.01, "timeout": 5.0, "patience": 5.0} | options
    with ServerEngine(ServerOptions(urls, **options)) as engine:
        found = {result.number: result.outcome for result in engine.generate(requests)}
    assert sorted(found) == list(range(len(requests)))
    return [found[number] for number in range(len(requests))]


def test_each_protocol_sends_what_it_should() -> None:
    talk = [{"role": "user", "content": "Hi"}]
    request = Request([1, 5, 6], 16, 0.8, 0.95, 42, (2, 9), text="user: Hi", messages=talk,
                      template_arguments={"tools": [{"type": "function"}], "enable_thinking": False})  # fmt: skip
    shared = {"model": "m", "max_tokens": 16, "temperature": 0.8, "top_p": 0.95, "seed": 42, "x": 1}
    with Server(echo) as server:
        for api in ("tokens", "text", "chat"):
            (sample,) = run([server.url + "/"], [request], api=api, extra={"x": 1})
            assert isinstance(sample, Sample) and sample.finish_reason == "stop" and sample.tokens > 1
    (tokens, text, chat) = server.seen
    assert tokens[0] == text[0] == "/v1/completions" and chat[0] == "/v1/chat/completions"
    assert tokens[1] == shared | {
        "prompt": [1, 5, 6], "stop_token_ids": [2, 9], "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
        "skip_special_tokens": True, "return_token_ids": True,
    }  # fmt: skip
    assert text[1] == shared | {"prompt": "user: Hi"}
    assert chat[1] == shared | {
        "messages": talk, "tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip


def test_answers_are_read() -> None:
    answers = [
        {"text": "a b", "finish_reason": "length", "token_ids": [4, 5]},
        {"text": "", "finish_reason": "stop"},
        {"text": " é\ud83d", "finish_reason": "eos_token", "stop_reason": None},
    ]

    def script(handler: Handler, body: dict[str, Any]) -> None:
        handler.send(200, json.dumps({"choices": [answers[body["seed"]]]}))

    with Server(script) as server:
        found = run([server.url], requests_of(3))
    assert found == [
        Sample("a b", "length", 2, [4, 5]), Sample("", "stop", -1), Sample(" é\ud83d", "stop", -1),
    ]  # fmt: skip


def test_every_fault_of_a_server_is_tried_again() -> None:
    """Each request meets all of them before it is answered."""
    attempts: Counter[int] = Counter()
    guard = threading.Lock()

    def script(handler: Handler, body: dict[str, Any]) -> None:
        seed = body["seed"]
        with guard:
            attempts[seed] += 1
            attempt = attempts[seed]
        if attempt == 1:
            handler.send(429, "slow down", retry_after="0.05")
        elif attempt == 2:
            handler.send(500, "oops")
        elif attempt == 3:
            handler.send(200, '{"choices": [{"te')
        elif attempt == 4:
            handler.send(200, '{"object": "error", "message": "none"}')
        elif attempt == 5:
            time.sleep(0.5)
        elif attempt == 6:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif attempt == 7:
            handler.send(200, '{"choices": [{"text": "x", "finish_reason": "abort"}]}')
        elif attempt == 8:
            handler.send(503, "loading", retry_after="soon")
        else:
            echo(handler, body)

    with Server(script) as server:
        found = run([server.url], requests_of(12), timeout=0.3, retries=6)
    assert [sample.text for sample in found if isinstance(sample, Sample)] == [f"[7, {n}] {n}" for n in range(12)]


def test_a_request_that_keeps_failing_is_recorded_and_the_others_go_on() -> None:
    def script(handler: Handler, body: dict[str, Any]) -> None:
        if body["seed"] == 1:
            handler.send(500, "CUDA error:\n  key-123 is not here " + "x" * 1000)
        elif body["seed"] == 2:
            handler.send(400, '{"message": "prompt too long"}')
        elif body["seed"] == 3:
            time.sleep(0.5)
        elif body["seed"] == 4:
            handler.send(429, "full")
        else:
            echo(handler, body)

    with Server(script) as server:
        found = run([server.url], requests_of(8), timeout=0.1, retries=2, patience=0.3, api_key="key-123")
        seeds = Counter(body["seed"] for _, body, _ in server.seen)
        assert {key for _, _, key in server.seen} == {"Bearer key-123"}
    failed = {number: outcome.error for number, outcome in enumerate(found) if isinstance(outcome, Failure)}
    assert set(failed) == {1, 2, 3, 4}
    assert "HTTP 500: CUDA error: *** is not here" in failed[1] and "(3 attempts)" in failed[1]
    assert len(failed[1]) < 300 and "key-123" not in str(failed)
    assert "HTTP 400" in failed[2] and seeds[2] == 1  # refused: not asked again
    assert "no answer within 0.1 seconds" in failed[3] and seeds[3] == 3
    assert "HTTP 429" in failed[4]


def test_a_server_that_is_restarted_behind_a_proxy_loses_nothing() -> None:
    began = time.monotonic()

    def script(handler: Handler, body: dict[str, Any]) -> None:
        if time.monotonic() - began < 0.5:
            handler.send(502, "bad gateway")
        else:
            echo(handler, body)

    with Server(script) as server:
        found = run([server.url], requests_of(8), retries=1, patience=20)
    assert len(found) == 8 and all(isinstance(sample, Sample) for sample in found)


def test_no_more_requests_are_under_way_than_allowed() -> None:
    def script(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(0.02)
        echo(handler, body)

    taken = []

    def requests():
        for number, request in enumerate(requests_of(40)):
            taken.append(number)
            yield request

    with Server(script) as first, Server(script) as second:
        options = ServerOptions([first.url, second.url], "m", max_in_flight=6)
        with ServerEngine(options) as engine:
            results = engine.generate(requests())
            next(results)
            assert len(taken) <= 6
            assert len(list(results)) == 39
        assert first.most + second.most <= 7 and first.most > 1
        assert len(first.seen) == len(second.seen) == 20  # in turn


def test_a_dead_server_among_several_is_passed_over() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with Server(echo) as server:
            found = run([dead, server.url], requests_of(30), retries=0)
    assert all(isinstance(sample, Sample) for sample in found)


def test_a_server_that_is_restarted_loses_nothing() -> None:
    first = Server(echo).__enter__()
    port = first.server_address[1]
    results: list[Sample | Failure] = []
    seconds: list[Server] = []

    def restart() -> None:
        seconds.append(Server(echo, port).__enter__())

    with ServerEngine(ServerOptions([first.url], "m", pause=0.02, patience=20, max_in_flight=2)) as engine:
        for result in engine.generate(requests_of(60)):
            results.append(result.outcome)
            if len(results) == 10:
                first.__exit__()
                threading.Timer(0.3, restart).start()
    seconds[0].__exit__()
    assert len(results) == 60 and all(isinstance(sample, Sample) for sample in results)


def test_the_run_ends_where_no_server_answers() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(EngineError, match=r"no server answers \(http://127.0.0.1:\d+/v1\).*give the same command"):
            run([url], requests_of(5), patience=0.2)


@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_the_run_ends_where_all_servers_stay_busy(max_in_flight: int) -> None:
    with (
        Server(lambda handler, body: handler.send(429, "full")) as server,
        pytest.raises(EngineError, match=r"no request got through for 0.2 seconds: .*429.*goes on"),
    ):
        run([server.url], requests_of(5), patience=0.2, max_in_flight=max_in_flight)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_the_run_ends_where_no_request_can_succeed(status: int) -> None:
    def script(handler: Handler, body: dict[str, Any]) -> None:
        handler.send(status, "wrong key: secret-9")

    with Server(script) as server:
        with pytest.raises(EngineError, match=f"HTTP {status}: wrong key: \\*\\*\\*; check the URL"):
            run([server.url], requests_of(50), api_key="secret-9")
        assert len(server.seen) <= 50


def test_an_interrupt_does_not_wait_for_answers() -> None:
    def script(handler: Handler, body: dict[str, Any]) -> None:
        if body["seed"]:
            time.sleep(3)
        echo(handler, body)

    begun = time.monotonic()
    with Server(script) as server, ServerEngine(ServerOptions([server.url], "m")) as engine:
        for _ in engine.generate(requests_of(5)):
            break
        engine.close()
        assert time.monotonic() - begun < 2


def test_usage_is_read_and_refusals_are_not_asked_again() -> None:
    def script(handler: Handler, body: dict[str, Any]) -> None:
        said: dict[str, Any] = {"message": {"content": "fine"}, "finish_reason": "stop"}
        if body["seed"] == 1:
            said = {"message": {"content": None, "refusal": "I cannot help"}, "finish_reason": "stop"}
        elif body["seed"] == 2:
            said = {"message": {"content": "half"}, "finish_reason": "content_filter"}
        usage = {"prompt_tokens": 11, "completion_tokens": 3}
        handler.send(200, json.dumps({"choices": [said], "usage": usage}))

    with Server(script) as server:
        found = run([server.url], requests_of(3, messages=[{"role": "user", "content": "Hi"}]), api="chat")
    assert found[0] == Sample("fine", "stop", 3, prompt_tokens=11)
    assert isinstance(found[1], Failure) and found[1].refused and "refuses to answer: I cannot help" in found[1].error
    assert isinstance(found[2], Failure) and found[2].refused and "content filter" in found[2].error
    assert len(server.seen) == 3
