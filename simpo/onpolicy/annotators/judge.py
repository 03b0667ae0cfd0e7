"""A language model as a judge: every two responses are compared twice, the second time in the other order.

    points of a comparison   1 for the response that is better, 1/2 for both in a tie, 0
    score(i)                 mean points over all comparisons of response i, from 0 to 1

A judge that names the first response both times gives each 1/2: liking a place is no preference. A verdict that cannot
be read is none, never a tie: the two responses then have no score, since they would be compared with fewer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from simpo.engines.base import Engine, Failure, Request, Sample
from simpo.engines.server_engine import ServerEngine, ServerOptions
from simpo.errors import ConfigError
from simpo.onpolicy.annotators.base import Item, Scored
from simpo.onpolicy.annotators.kinds import JudgeSettings

TEMPLATE = Path(__file__).with_name("judge.jinja")
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_POINTS = {"A": (1.0, 0.0), "B": (0.0, 1.0), "C": (0.5, 0.5)}


def read_verdict(text: str) -> str | None:
    """A, B, or C for a tie: the last verdict of the text; None where there is none.

    >>> read_verdict("Both are fine, [[C]] perhaps, but A is right. [[A]]")
    'A'
    >>> read_verdict("A is better") is None
    True
    """
    found = _VERDICT.findall(text)
    return found[-1] if found else None


def connect(settings: JudgeSettings) -> Engine:
    """The servers of a judge; nothing is sent before the first request."""
    urls = [settings.base_urls] if isinstance(settings.base_urls, str) else settings.base_urls
    key = os.environ[settings.api_key_env] if settings.api_key_env else None
    return ServerEngine(
        ServerOptions(
            urls,
            settings.model,
            api="chat",
            max_in_flight=settings.max_in_flight,
            timeout=settings.timeout,
            retries=settings.retries,
            patience=settings.patience,
            api_key=key,
            extra=settings.extra,
        )
    )


class Judge:
    """Scores the responses of a prompt by comparisons.

    Args:
        settings: which model, prompt and bounds.
        engine: where the judge answers.

    Raises:
        ConfigError: the prompt template cannot be read, or does not name what it must.
    """

    def __init__(self, settings: JudgeSettings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._template = read_template(settings.prompt_template)

    def score(self, items: Sequence[Item]) -> list[Scored]:
        """Raises EngineError when no server answers for long: what was scored before stays."""
        places = [(at, i, j) for at, item in enumerate(items) for i, j in permutations(range(len(item.responses)), 2)]
        requests = [self._ask(items[at], i, j) for at, i, j in places]
        found = [Scored([None] * len(item.responses)) for item in items]
        points: list[list[list[float | None]]] = [[[] for _ in item.responses] for item in items]
        for number, outcome in self._engine.generate(requests):
            at, i, j = places[number]
            verdict = None if isinstance(outcome, Failure) else read_verdict(outcome.text)
            if verdict is None:
                found[at].problems.append(f"responses {i} and {j}: {_why(outcome)}")
            first, second = _POINTS.get(verdict or "", (None, None))
            points[at][i].append(first)
            points[at][j].append(second)
        for scored, of_item in zip(found, points, strict=True):
            scored.scores = [_mean(of_response) for of_response in of_item]
        return found

    def _ask(self, item: Item, first: int, second: int) -> Request:
        text = self._template.render(
            conversation=item.transcript, response_a=item.responses[first], response_b=item.responses[second]
        )
        return Request(
            prompt_ids=[],
            max_new_tokens=self._settings.max_new_tokens,
            temperature=self._settings.temperature,
            messages=[{"role": "user", "content": text}],
        )


def _why(outcome: Sample | Failure) -> str:
    if isinstance(outcome, Failure):
        return f"no answer of the judge: {outcome.error}"
    cut = ", which was cut at max_new_tokens" if outcome.finish_reason == "length" else ""
    return f"no verdict in the judge's answer{cut}: ...{outcome.text.strip()[-60:]!r}"


def _mean(points: Sequence[float | None]) -> float | None:
    known = [value for value in points if value is not None]
    return sum(known) / len(known) if known and len(known) == len(points) else None


def read_template(path: str | None) -> jinja2.Template:
    """The prompt of the judge; rendered in jinja's sandbox, where it reaches nothing but the three texts.

    Raises:
        ConfigError: the file cannot be read, is no template, or leaves out one of conversation, response_a, response_b.
    """
    file = TEMPLATE if path is None else Path(path).expanduser()
    try:
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
        template = environment.from_string(file.read_text(encoding="utf-8"))
        names = ("conversation", "response_a", "response_b")
        text = template.render({name: f"<{name}>" for name in names})
    except (OSError, UnicodeDecodeError, jinja2.TemplateError) as error:
        raise ConfigError(f"prompt_template: {file}: {error}") from error
    absent = [name for name in names if f"<{name}>" not in text]
    if absent or "[[A]]" not in text:
        what = ", ".join(f"{{{{ {name} }}}}" for name in absent) or "the verdict [[A]]"
        raise ConfigError(f"prompt_template: {file}: does not hold {what}; see {TEMPLATE}")
    return template
