"""The pages of the documentation: their fenced blocks and tables."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# Files that the text invents for the reader's own.
INVENTED = {
    "my-machine.yaml": "per_device_train_batch_size: 4\n",
    "generate.yaml": "model_name_or_path: my-model\ndataset_name: p.jsonl\noutput_dir: outputs/responses\n",
    "annotate.yaml": "generations: g\noutput_dir: s\nannotators: {a: {kind: function, function: 'm:f'}}\n",
    "outputs/try-2/settings.yaml": "model_name_or_path: my-model\ndataset_mixer: {data/pairs.jsonl: 1.0}\n",
}


class Block(NamedTuple):
    """A fenced block: its page, the line where it begins, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Fenced blocks of these languages on every page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(str(page.relative_to(ROOT)), line, match[1], match[2]))
    return [block for block in found if not languages or block.language in languages]


def table(page: Path, *head: str) -> list[list[str]]:
    """Rows of the table whose first columns are named so."""
    lines = page.read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("| " + " | ".join(head)))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows
