"""Files of benchmarks in their official layouts: lines of JSON by question, written as a whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simpo.errors import DataError

Row = dict[str, Any]
_LONGEST = 120  # characters of a name in a path


def read_lines(path: str | Path) -> list[Row]:
    """The objects of a .jsonl file, with empty lines left out.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    rows: list[Row] = []
    for number, line in enumerate(_text(path).split("\n"), start=1):  # splitlines() would cut at U+2028 in texts
        if line.strip():
            row = _json(line, f"{path}:{number}")
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: must be a JSON object on one line, not {line[:40]!r}")
            rows.append(row)
    return rows


def read_list(path: str | Path) -> list[Row]:
    """The objects of a .json file that holds one list, as AlpacaEval's do.

    Raises:
        DataError: the file cannot be read, or is no list of objects.
    """
    rows = _json(_text(path), str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must be a list of objects, [{{...}}, ...]")
    return rows


def by_question(path: str | Path) -> dict[str, Row]:
    """The rows of a .jsonl file by `question_id`, as text, in their order; of two with the same the last one.

    Raises:
        DataError: the file cannot be read, is empty, or a row has no `question_id`.
    """
    rows = read_lines(path)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("question_id"), str | int):
            raise DataError(f"{path}: row {number} has no question_id")
    return {str(row["question_id"]): row for row in rows}


def turns_of(row: Mapping[str, Any], path: str | Path) -> list[str]:
    """The texts of a question's or an answer's turns, in either layout: strings, or objects with `content`.

    Raises:
        DataError: they are not there.
    """
    try:
        turns = row["choices"][0]["turns"] if "choices" in row else row["turns"]
        texts = [turn if isinstance(turn, str) else turn["content"] for turn in turns]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError
    except (KeyError, IndexError, TypeError):
        raise DataError(
            f'{path}: question {row.get("question_id")} has no turns; write "turns": [text, ...], or for an answer '
            '"choices": [{"turns": [text, ...]}]'
        ) from None
    return texts


def check_answered(questions: Iterable[str], answers: Mapping[str, Row], path: str | Path) -> None:
    """Raise DataError unless every question has an answer."""
    absent = [question for question in questions if question not in answers]
    if absent:
        raise DataError(
            f"{path}: lacks {len(absent)} answers, the first to question {absent[0]}; finish the answers first"
        )


def model_of(answers: Mapping[str, Row], path: str | Path) -> str:
    """The one `model_id` of a file of answers.

    Raises:
        DataError: there is none, or several.
    """
    names = {row.get("model_id") for row in answers.values()}
    if len(names) != 1 or not isinstance(name := names.pop(), str):
        raise DataError(f"{path}: must hold answers of one model, with its name in model_id")
    return name


def write_lines(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a .jsonl file in one move; folders are made."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: str | Path, text: str) -> None:
    """Write a file in one move; folders are made."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_bytes(text.encode("utf-8", "surrogatepass"))
    os.replace(part, file)


def digest_of(rows: Any) -> str:
    """A short hash of JSON: what judgments depend on."""
    text = json.dumps(rows, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def file_name(name: str) -> str:
    """A model's name as part of a path: `org/model` becomes `org_model`. It never leads out of its folder.

    >>> file_name("../../etc"), file_name("..")
    ('.._.._etc', '__')
    """
    plain = re.sub(r"[/\\\x00-\x1f]", "_", name)
    if not plain.strip("."):
        return "_" * max(1, len(plain))
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}-{digest_of(name)}"


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON: {error}") from error
