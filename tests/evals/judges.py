"""Answer files and judges that a test writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simpo.evals.judges.judging import JudgeServer
from tests.engines.serving import Handler

Says = Callable[[list[dict[str, str]]], str]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def say(handler: Handler, text: str | None, **fields: Any) -> None:
    """A chat answer with the usage of a real server: 100 tokens asked, 7 answered."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, **fields}
    usage = {"prompt_tokens": 100, "completion_tokens": 7}
    handler.send(200, json.dumps({"choices": [choice], "usage": usage}))


def scripted(says: Says) -> Callable[[Handler, dict[str, Any]], None]:
    """A judge that answers by the messages it is given."""
    return lambda handler, body: say(handler, says(body["messages"]))


def server(url: str, **options: Any) -> JudgeServer:
    given: dict[str, Any] = {"pause": 0.01, "timeout": 5.0, "patience": 2.0, "retries": 1, "max_in_flight": 4}
    return JudgeServer(base_urls=(url,), **given | options)
