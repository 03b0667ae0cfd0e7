"""`simpo chat` in the terminal: one model, or two side by side or in turn, until /quit."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from simpo.chat.chat import Conversation, Speaker
from simpo.errors import DataError

COMMANDS = (
    "/new begins again, /system TEXT sets the system turn (without TEXT: none), /quit ends; Ctrl-C stops an answer"
)
_WIDE = 100  # columns from which two models stand side by side


def answer_once(speakers: Sequence[Speaker], question: str, system: str | None, out: TextIO) -> None:
    """Answer one question on a stream: the answer and nothing else; of two models each under its name.

    Raises:
        DataError: a template refuses the question, or it leaves no room for an answer.
    """
    for number, speaker in enumerate(speakers):
        if len(speakers) > 1:
            out.write(f"{chr(10) if number else ''}{speaker.name}:\n")
        conversation = Conversation(system, [{"role": "user", "content": question}])

        def say(text: str) -> None:
            out.write(text)
            out.flush()

        speaker.answer(conversation.messages(), say)
        out.write("\n")


class Chat:
    """The conversation of a user with one model or two; each model remembers its own answers.

    Args:
        speakers: the models.
        system: the system turn to begin with.
        console: where it shows.
    """

    def __init__(self, speakers: Sequence[Speaker], system: str | None, console: Console) -> None:
        self.speakers, self.console = speakers, console
        self.conversations = [Conversation(system) for _ in speakers]

    def run(self) -> None:
        """Talk until /quit or the end of input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # lines can be edited, and earlier ones called back

        self._say(COMMANDS)
        while True:
            try:
                line = self.console.input(Text("\n> ", style="bold")).strip()
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:  # nothing is being answered
                self._say("/quit ends")
                continue
            if line == "/quit":
                return
            if line:
                self.take(line)

    def take(self, line: str) -> None:
        """Do what a line says: a command, or a question."""
        command, _, rest = line.partition(" ")
        if command == "/new" and not rest:
            self._begin(self.conversations[0].system)
            self._say("a new conversation")
        elif command == "/system":
            self._begin(rest.strip() or None)
            self._say(f"a new conversation, {'with this system turn' if rest.strip() else 'without a system turn'}")
        elif line.startswith("/"):
            self._say(f"{command} is no command: {COMMANDS}")
        else:
            self._ask(line)

    def _begin(self, system: str | None) -> None:
        self.conversations = [Conversation(system) for _ in self.speakers]

    def _ask(self, question: str) -> None:
        side_by_side = len(self.speakers) > 1 and self.console.is_terminal and self.console.width >= _WIDE
        answers = self._in_columns(question) if side_by_side else self._in_turn(question)
        for conversation, answer in zip(self.conversations, answers, strict=True):
            if answer:  # what was stopped stays as it is; of nothing nothing is kept
                conversation.add(question, answer)

    def _in_turn(self, question: str) -> list[str]:
        answers = []
        for speaker, conversation in zip(self.speakers, self.conversations, strict=True):
            if len(self.speakers) > 1:
                self.console.print(Text(f"{speaker.name}:", style="bold"))
            answers.append(self._answer(speaker, conversation, question, self._stream))
            self.console.print()
        return answers

    def _stream(self, text: str) -> None:
        self.console.print(Text(text), end="", soft_wrap=True)

    def _in_columns(self, question: str) -> list[str]:
        shown = ["" for _ in self.speakers]
        answers: list[str] = []
        with Live(console=self.console, refresh_per_second=12, vertical_overflow="crop") as live:
            for at, (speaker, conversation) in enumerate(zip(self.speakers, self.conversations, strict=True)):

                def show(text: str, at: int = at) -> None:
                    shown[at] += text
                    live.update(self._columns(shown, self.console.height - 3))

                live.update(self._columns(shown, self.console.height - 3))
                answers.append(self._answer(speaker, conversation, question, show))
            live.vertical_overflow = "visible"
            live.update(self._columns(shown, None), refresh=True)
        return answers

    def _columns(self, texts: Sequence[str], height: int | None) -> Table:
        """Panels side by side; of texts beyond a height the end, where the next word comes."""
        table = Table.grid(expand=True)
        panels = []
        for speaker, text in zip(self.speakers, texts, strict=True):
            table.add_column(ratio=1)
            lines = Text(text.strip()).wrap(self.console, self.console.width // len(texts) - 4)
            kept = lines if height is None else lines[-max(1, height) :]
            panels.append(Panel(Text("\n").join(kept), title=Text(speaker.name), title_align="left"))
        table.add_row(*panels)
        return table

    def _answer(self, speaker: Speaker, conversation: Conversation, question: str, say: Callable[[str], None]) -> str:
        turn = Conversation(conversation.system, [*conversation.turns, {"role": "user", "content": question}])
        try:
            return speaker.answer(turn.messages(), say)
        except DataError as error:
            say(f"{error}; /new begins again, /system changes the system turn")
            return ""

    def _say(self, text: str) -> None:
        self.console.print(Text(text), style="dim")


def chat(models: Sequence[Speaker], *, system: str | None, prompt: str | None) -> None:
    """Answer one prompt on stdout (`-` is what stdin holds), or talk in the terminal.

    Raises:
        DataError: the prompt is empty, or cannot be asked.
    """
    if prompt is None:
        Chat(models, system, Console(highlight=False, markup=False, emoji=False)).run()
        return
    question = sys.stdin.read() if prompt == "-" else prompt
    if not question.strip():
        raise DataError("--prompt: is empty; write a question, or - to read one from stdin")
    answer_once(models, question.strip(), system, sys.stdout)
