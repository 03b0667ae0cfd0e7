"""Generations and scores made by hand, in stores like those of the commands."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simpo.onpolicy.scored import fingerprint
from simpo.store import Store


def generation(row: int, texts: Sequence[str], **changes: Any) -> dict[str, Any]:
    """A record of `simpo generate`; a text that ends in … was cut."""
    responses = [
        {
            "text": text,
            "finish_reason": "length" if text.endswith("…") else "stop",
            "tokens": len(text.split()),
            "seed": n,
        }
        for n, text in enumerate(texts)
    ]
    prompt = [{"role": "user", "content": f"Question {row}?"}]
    return {"id": f"p{row}", "row": row, "prompt": prompt, "responses": responses, "error": None, **changes}


def store_in(folder: Path) -> Callable[[str, Sequence[dict[str, Any]]], str]:
    """make(name, records) -> a folder in `folder`: a store with these records, in this order."""

    def make(name: str, records: Sequence[dict[str, Any]]) -> str:
        with Store(folder / name, {}) as made:
            for record in records:
                made.append(record["id"], record)
        return str(folder / name)

    return make


def scored(made: dict[str, Any], **scores: Sequence[float | None]) -> dict[str, Any]:
    """A record of `simpo annotate` for a generation."""
    texts = [response["text"] for response in made["responses"]]
    lists = {name: list(values) for name, values in scores.items()}
    return {"id": made["id"], "row": made["row"], "of": fingerprint(texts), "scores": lists, "error": None}


def import_file(path: Path) -> Any:
    """The module in a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module
