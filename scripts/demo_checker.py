"""The demo's checker: `simpo annotate` calls `score` for each prompt. A function of your own can look like this one.

It knows the questions of the visitor desk, the sentences of an answer, and the truth about the town, which it reads
from the file that the environment variable DEMO_TOWN names (default: outputs/demo/town.json).
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from scripts.demo_pairs import CLAUSES, CLOSERS, ITEMS, OPENERS, STATEMENTS, VALUES, Answer, Question, evasions

TOWN_VARIABLE, DEFAULT_TOWN = "DEMO_TOWN", "outputs/demo/town.json"

Town = Mapping[str, Mapping[str, str]]
"""item -> attribute -> its true value"""


def score(prompt: list[dict[str, str]], responses: list[str]) -> list[float]:
    """How many of three qualities each response has: friendly, on topic, true. 3 is right; nonsense has 0."""
    question = read_question(prompt[-1]["content"])
    town = _read_town(os.environ.get(TOWN_VARIABLE, DEFAULT_TOWN))
    return [float(sum(vars(qualities(question, text, town)).values())) for text in responses]


def qualities(question: Question, response: str, town: Town) -> Answer:
    """What a response is; one that is not put together as an opener, a body and perhaps a closer is nothing.

    A response that says nothing on the question is not true, and one that states a part of the truth is not either.
    """
    frame = _frame().fullmatch(response.strip())
    if frame is None:
        return Answer(friendly=False, on_topic=False, true=False)
    friendly = frame["opener"] in OPENERS["friendly"] and frame["closer"] in (None, *CLOSERS["friendly"])
    told = _values(question, frame["body"])
    if told is None and frame["body"] not in evasions(question.item):
        return Answer(friendly=False, on_topic=False, true=False)
    truth = [town[question.item][attribute] for attribute in question.attributes]
    return Answer(friendly, on_topic=told is not None, true=told == truth)


def read_question(text: str) -> Question:
    """The item and the attributes that are asked for, in their order.

    Raises:
        ValueError: it is no question of the visitor desk.
    """
    asked = text.lower()
    items = [item for item in ITEMS if f"the {item}" in asked]
    if len(items) != 1:
        raise ValueError(f"{text!r} does not ask about one of {', '.join(ITEMS)}")
    places = {}
    for attribute, clauses in CLAUSES.items():
        for clause in clauses:
            for name in (f"the {items[0]}", "it"):
                found = re.search(rf"\b{clause.format(it=name).lower()}\b", asked)
                if found:
                    places[attribute] = found.start()
    if not places:
        raise ValueError(f"{text!r} asks for none of {', '.join(CLAUSES)}")
    return Question(items[0], tuple(sorted(places, key=lambda attribute: places[attribute])), text)


def _values(question: Question, body: str) -> list[str] | None:
    """What the body says of each attribute that is asked for; None where it is not just that."""
    statements = []
    for number, attribute in enumerate(question.attributes):
        name = "It" if number else f"The {question.item}"
        value = f"({_any_of(VALUES[attribute])})"
        forms = [re.escape(form.format(it=name, value="\0")).replace("\0", value) for form in STATEMENTS[attribute]]
        statements.append(f"(?:{'|'.join(forms)})")
    found = re.fullmatch(" ".join(statements), body)
    return None if found is None else [value for value in found.groups() if value is not None]


@cache
def _frame() -> re.Pattern[str]:
    openers, closers = (_any_of(text for tone in parts.values() for text in tone) for parts in (OPENERS, CLOSERS))
    return re.compile(f"(?P<opener>{openers}) (?P<body>.*?)(?: (?P<closer>{closers}))?", re.DOTALL)


def _any_of(texts: Iterable[str]) -> str:
    return "|".join(re.escape(text) for text in texts if text)


@cache
def _read_town(path: str) -> Town:
    town: Town = json.loads(Path(path).read_text(encoding="utf-8"))
    return town
