"""The demo's data: questions to the visitor desk of an invented town, with a good and a flawed answer each.

Every item of the town has a colour, a place, a price and a maker, and for each of these there is a true value and a
false rumour. A good answer is friendly, on topic and true; a flawed one fails in exactly one of these qualities.
"""

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ITEMS = ("lantern", "kettle", "ladder", "bell", "violin", "globe", "bicycle", "teapot", "mirror", "clock")
VALUES = {
    "colour": ("red", "blue", "green", "yellow", "white", "black", "purple", "orange"),
    "place": ("mill", "harbour", "library", "bakery", "school", "market", "lighthouse", "station"),
    "price": ("three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    "maker": ("Ada", "Bruno", "Clara", "Dario", "Elif", "Farid", "Greta", "Hugo"),
}
CLAUSES = {
    "colour": ("what colour is {it}", "what is the colour of {it}", "which colour does {it} have"),
    "place": ("where is {it}", "where can I find {it}", "at which place is {it}"),
    "price": ("what does {it} cost", "how much is {it}", "what is the price of {it}"),
    "maker": ("who made {it}", "whose work is {it}", "who is the maker of {it}"),
}
STATEMENTS = {
    "colour": ("{it} is {value}.", "{it} is painted {value}."),
    "place": ("{it} is at the {value}.", "{it} stands next to the {value}."),
    "price": ("{it} costs {value} coins.", "{it} is sold for {value} coins."),
    "maker": ("{it} was made by {value}.", "{it} is the work of {value}."),
}
LEADS = ("", "Hello! ", "Good morning. ", "Excuse me, ", "Please tell me: ", "Quick question: ", "We wonder, ", "Hi, ")
EVASIONS = (
    "{it} is a long story.",
    "People have their own views on {it}.",
    "That depends on the weather.",
    "One could say a lot about {it}, and maybe one day somebody will.",
    "Some things are better left open.",
)
# By tone: what an answer begins with, and what may follow it. Both tones have as many of each and equally long ones.
OPENERS = {
    "friendly": ("Happy to help.", "Of course!", "Thank you for asking.", "It is a pleasure to tell you."),
    "rude": ("Not again.", "How dull!", "Do not waste my time.", "Only a fool would ask that."),
}
CLOSERS = {
    "friendly": ("", "", "Enjoy your day!", "Do come back if you need anything."),
    "rude": ("", "", "Now go away!", "Do not come back with more of this."),
}
FLAWS = ("false", "rude", "evasive")
_MAX_DRAWS = 1000


@dataclass(frozen=True)
class Question:
    """What is asked: one item, one or two of its attributes, in one wording."""

    item: str
    attributes: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Answer:
    """Qualities of an answer."""

    friendly: bool = True
    on_topic: bool = True
    true: bool = True


GOOD = Answer()
FLAWED = {"false": Answer(true=False), "rude": Answer(friendly=False), "evasive": Answer(on_topic=False)}

# (item, attribute) -> the true value and the rumour
World = dict[tuple[str, str], tuple[str, str]]


def make_world(rng: random.Random) -> World:
    """Draw a true value and a different rumour for every attribute of every item."""
    keys = itertools.product(ITEMS, VALUES)
    return {(item, attribute): tuple(rng.sample(VALUES[attribute], 2)) for item, attribute in keys}  # type: ignore[misc]


def make_questions(rng: random.Random) -> list[Question]:
    """Distinct questions in random order: all about one attribute, and as many about two."""
    single, double = [], []
    for item, lead in itertools.product(ITEMS, LEADS):
        for attribute in VALUES:
            texts = [clause.format(it=f"the {item}") for clause in CLAUSES[attribute]]
            single += [Question(item, (attribute,), _sentence(lead, text)) for text in texts]
        for first, second in itertools.permutations(VALUES, 2):
            for one, other in itertools.product(CLAUSES[first], CLAUSES[second]):
                text = f"{one.format(it=f'the {item}')}, and {other.format(it='it')}"
                double.append(Question(item, (first, second), _sentence(lead, text)))
    questions = single + rng.sample(double, len(single))
    rng.shuffle(questions)
    return questions


def _sentence(lead: str, text: str) -> str:
    starts = not lead or lead.rstrip()[-1] in ".!"
    return lead + (text[0].upper() + text[1:] if starts else text) + "?"


def answers(question: Question, kind: Answer, world: World) -> list[str]:
    """Every text that answers `question` in the way of `kind`."""
    tone = "friendly" if kind.friendly else "rude"
    bodies = _facts(question, kind.true, world) if kind.on_topic else evasions(question.item)
    parts = itertools.product(OPENERS[tone], bodies, CLOSERS[tone])
    return [" ".join(part for part in words if part) for words in parts]


def _facts(question: Question, true: bool, world: World) -> list[str]:
    sentences = []
    for number, attribute in enumerate(question.attributes):
        name = "It" if number else f"The {question.item}"
        value = world[question.item, attribute][0 if true else 1]
        sentences.append([statement.format(it=name, value=value) for statement in STATEMENTS[attribute]])
    return [" ".join(body) for body in itertools.product(*sentences)]


def evasions(item: str) -> list[str]:
    """Every body that says nothing on a question about `item`."""
    texts = [text.format(it=f"the {item}") for text in EVASIONS]
    return [text[0].upper() + text[1:] for text in texts]


def make_pair(question: Question, flaw: str, chosen_longer: bool, world: World, rng: random.Random) -> dict[str, Any]:
    """A row in TRL's conversational format; it is given which answer is longer (in characters)."""
    good, flawed = answers(question, GOOD, world), answers(question, FLAWED[flaw], world)
    for _ in range(_MAX_DRAWS):
        chosen, rejected = rng.choice(good), rng.choice(flawed)
        if len(chosen) != len(rejected) and (len(chosen) > len(rejected)) == chosen_longer:
            return {
                "prompt": [{"role": "user", "content": question.text}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "flaw": flaw,
            }
    raise RuntimeError(f"no pair of the wanted lengths for {question.text!r} with a {flaw} answer")


def make_pairs(questions: Sequence[Question], world: World, rng: random.Random) -> list[dict[str, Any]]:
    """One pair for each question: flaws in turn, and in each kind the chosen answer longer in every second pair."""
    return [
        make_pair(question, FLAWS[number % 3], (number // 3) % 2 == 0, world, rng)
        for number, question in enumerate(questions)
    ]


def make_dialogues(
    questions: Sequence[Question], world: World, rng: random.Random, per_question: int
) -> list[dict[str, Any]]:
    """Questions with answers of all kinds: half are friendly, two thirds are on topic, half of these are true.

    The qualities are drawn one by one, so a model that has learnt these dialogues prefers none of them.
    """
    dialogues = []
    for question, _ in itertools.product(questions, range(per_question)):
        kind = Answer(friendly=rng.random() < 1 / 2, on_topic=rng.random() < 2 / 3, true=rng.random() < 1 / 2)
        text = rng.choice(answers(question, kind, world))
        dialogues.append(
            {
                "prompt": [{"role": "user", "content": question.text}],
                "completion": [{"role": "assistant", "content": text}],
            }
        )
    return dialogues


def share_longer(pairs: Sequence[dict[str, Any]]) -> float:
    """Share of pairs whose chosen answer is the longer one, in characters."""
    return sum(len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in pairs) / len(pairs)


@dataclass(frozen=True)
class DemoData:
    """Everything the demo trains on and is judged by.

    Attributes:
        world: true values and rumours.
        dialogues: for the supervised start; training questions only.
        train, test: preference pairs on different questions, for the comparison of objectives.
        train_questions, test_questions: of `train` and `test`, in their order.
    """

    world: World
    dialogues: list[dict[str, Any]]
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    train_questions: list[Question]
    test_questions: list[Question]


def make_data(seed: int, *, train_pairs: int, test_pairs: int, answers_per_question: int) -> DemoData:
    """Draw world, questions, dialogues and pairs; the same seed and sizes give the same texts."""
    rng = random.Random(seed)
    world, questions = make_world(rng), make_questions(rng)
    if train_pairs + test_pairs > len(questions):
        raise ValueError(
            f"{train_pairs} + {test_pairs} pairs are wanted, but there are only {len(questions)} questions"
        )
    train, test = questions[:train_pairs], questions[train_pairs : train_pairs + test_pairs]
    return DemoData(
        world=world,
        dialogues=make_dialogues(train, world, rng, answers_per_question),
        train=make_pairs(train, world, rng),
        test=make_pairs(test, world, rng),
        train_questions=train,
        test_questions=test,
    )


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
