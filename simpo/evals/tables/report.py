"""The files of a comparison."""

from __future__ import annotations

from pathlib import Path

from simpo.errors import ConfigError
from simpo.evals.tables.compare import Comparison
from simpo.evals.tables.plots import draw_comparison
from simpo.evals.tables.terminal import comparison_csv, markdown


def write_comparison(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write `compare.md`, `compare.csv` and `compare.png` into a folder, which is made if missing.

    Returns:
        What was written: no picture where there is nothing to draw.

    Raises:
        ConfigError: the folder cannot be written, or matplotlib is missing (text and CSV are written all the same).
    """
    folder = Path(folder)
    texts = {folder / "compare.md": markdown(comparison), folder / "compare.csv": comparison_csv(comparison)}
    picture = folder / "compare.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        drawn = draw_comparison(comparison, picture)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written: {error.strerror or error}") from error
    return [*texts, *([picture] if drawn else [])]
