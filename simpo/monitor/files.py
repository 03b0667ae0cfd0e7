"""What the monitors leave in RUN/monitor: warnings, answers, and log-probs of the same pairs at several steps.

`probe-000250.parquet` has the columns that `simpo.analysis.pairs.read_pairs` reads; its `ref_*` are the sums at
the start.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

MONITOR_FOLDER = "monitor"
WARNINGS, GENERATIONS = "warnings.jsonl", "generations.jsonl"


class MonitorFiles:
    """The folder of one run; one process writes it. What cannot be written is told once, and left out.

    Args:
        output_dir: folder of the run.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir, MONITOR_FOLDER)
        self._told = False

    def begin(self, step: int) -> None:
        """Drop what an earlier attempt wrote after the step that this one begins at: at step 0 everything."""
        with self._writing():
            for name in (WARNINGS, GENERATIONS):
                path = self.folder / name
                kept = [row for row in self._read(name) if row["step"] <= step > 0]
                if kept:
                    _write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
                else:
                    path.unlink(missing_ok=True)
            for path in self.folder.glob("probe-*.parquet"):
                number = path.stem.removeprefix("probe-")
                if number.isdigit() and (step == 0 or int(number) > step):
                    path.unlink()

    def warnings(self) -> list[dict[str, Any]]:
        """Those written so far."""
        return self._read(WARNINGS)

    def add(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to a file of JSON lines."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def write_probe(self, step: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write the log-probs of a step, in one piece."""
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._probe(step)
            pq.write_table(pa.table(dict(columns)), path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)

    def first_probe(self) -> dict[str, np.ndarray] | None:
        """The log-probs at the start of the run, by column; None where there are none that can be read."""
        path = self._probe(0)
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException):
            return None
        return {name: table[name].to_numpy() for name in table.column_names}

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._told:
                logger.warning("%s cannot be written (%s); the run goes on, and what its monitors see is not kept",
                               self.folder, error)  # fmt: skip
            self._told = True

    def _probe(self, step: int) -> Path:
        return self.folder / f"probe-{step:06d}.parquet"

    def _read(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                row = json.loads(line)
            except ValueError:  # cut short when the earlier attempt was killed
                continue
            rows += [row] if isinstance(row, dict) and isinstance(row.get("step"), int) else []
        return rows


def _write_text(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
