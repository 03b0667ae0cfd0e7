"""Chat templates: which one is used, whether it works, and what it writes around an answer.

Rendering is the tokenizer's own (`tokenizer.apply_chat_template`); nothing here interprets a template.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from simpo.data.schema import SYSTEM_ROLES, TEMPLATE_FAILS, Message, Pair
from simpo.errors import ConfigError, DataError, SimPOError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_DIR = Path(__file__).parent / "templates"

# private-use characters: no template writes them, and no data set holds them
_ASK, _ANSWER = "\ue0f0ask\ue0f0", "\ue0f1answer\ue0f1"
QUESTION: list[Message] = [{"role": "user", "content": _ASK}]
_EMPTY_SYSTEM: Message = {"role": "system", "content": ""}

_MARK = "simpomark"  # plain letters, since templates write some turns as JSON
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": _MARK, "arguments": {"a": "b"}}}
_PROBES: dict[str, list[Message]] = {
    "system": [{"role": "system", "content": _MARK}, *QUESTION],
    "developer": [{"role": "developer", "content": _MARK}, *QUESTION],
    "tool": [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [{**_CALL, "function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "name": "f", "tool_call_id": "abcdefghi", "content": _MARK},
    ],
    "tool_calls": [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "name": _MARK, "tool_call_id": "abcdefghi", "content": "c"},
    ],
}

# templates of Llama 3.2 and later write today's date: ids would change overnight, and a resumed run would be refused
_DATE = {"date_string": "26 Jul 2024"}


def shipped_templates() -> list[str]:
    """Names of the templates that come with this package."""
    return sorted(path.stem for path in TEMPLATE_DIR.glob("*.jinja"))


def resolve_chat_template(value: str | None, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The jinja text that a `chat_template` setting names.

    Args:
        value: None, a jinja text, a path to a .jinja file, or the name of a shipped template.
        tokenizer: the tokenizer whose special tokens the template writes; used to try the template once.

    Returns:
        The template's text; None where the tokenizer's own is to be used.

    Raises:
        ConfigError: there is no such file or shipped template, or the template does not compile or render.
    """
    if value is None:
        return None
    if "{{" in value or "{%" in value:
        text, name = value, "chat_template"
    else:
        text, name = _read_template(value)
    check_template(tokenizer, text, name, error=ConfigError)
    return text


def _read_template(value: str) -> tuple[str, str]:
    path = Path(value).expanduser()
    shipped = TEMPLATE_DIR / f"{value}.jinja"
    if not path.is_file() and not (os.sep in value or value.endswith(".jinja")) and shipped.is_file():
        path = shipped
    if not path.is_file():
        raise ConfigError(
            f"chat_template: {value!r} is no jinja text, no file (looked for {path.absolute()}) "
            f"and no shipped template; shipped: {', '.join(shipped_templates()) or 'none'}"
        )
    try:
        return path.read_text(encoding="utf-8"), f"chat_template {path}"
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat_template {path}: cannot be read: {error}") from error


def check_template(
    tokenizer: PreTrainedTokenizerBase, template: str, name: str, error: type[SimPOError] = DataError
) -> None:
    """Render one user turn, alone and with an answer, to see that the template works at all.

    Raises:
        SimPOError: of the given type, with the template's line, where it fails or leaves the texts out.
    """
    for messages, expected in ((QUESTION, _ASK), ([*QUESTION, {"role": "assistant", "content": _ANSWER}], _ANSWER)):
        try:
            text = render(tokenizer, template, [messages])[0]
        except Exception as cause:
            raise error(f"{name}: {describe_failure(cause)}; a plain user turn and an answer must render") from cause
        if expected not in text:
            raise error(f"{name}: the {messages[-1]['role']} message does not appear in the rendered text {text!r}")


def describe_failure(cause: BaseException) -> str:
    """A template's failure in one line: jinja's message and the template's line where it is known."""
    line = getattr(cause, "lineno", None)
    if line is None:
        frames = [frame.lineno for frame in traceback.extract_tb(cause.__traceback__) if frame.filename == "<template>"]
        line = frames[-1] if frames else None
    kind = "does not compile" if isinstance(cause, jinja2.TemplateSyntaxError) else "fails"
    text = str(cause).strip().splitlines()
    return f"the chat template {kind}{f' at line {line}' if line else ''}: {text[0] if text else type(cause).__name__}"


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template.

    Raises:
        DataError: it has none, and the data are messages.
    """
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise DataError(
            f"the data are messages and the tokenizer {tokenizer.name_or_path!r} has no chat template; "
            f"set chat_template (shipped: {', '.join(shipped_templates()) or 'none'})"
        ) from error


def check_one_template(tokenizer: PreTrainedTokenizerBase, pairs: Iterable[Pair]) -> None:
    """Refuse tools where the tokenizer keeps a template of its own for them: at inference it would take that one.

    Raises:
        DataError: a pair has tools, and there is such a template beside the default one.
    """
    own = tokenizer.chat_template
    if isinstance(own, Mapping) and "tool_use" in own and any("tools" in pair.arguments for pair in pairs):
        raise DataError(
            f"the data have tools, for which the tokenizer {tokenizer.name_or_path!r} has a second chat template, "
            "tool_use; one template must serve all rows: set chat_template to that one"
        )


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    conversations: list[list[Message]],
    arguments: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool = False,
) -> list[str]:
    """Texts of conversations that share their template arguments; raises what the template raises.

    A template that can be told its date is told one, the same every day, unless `arguments` do.
    """
    date = _DATE if "strftime_now" in template and "date_string" in template else {}
    return tokenizer.apply_chat_template(  # type: ignore[return-value]
        conversations,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **{**date, **(arguments or {})},
    )


def render_rows(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    conversations: list[list[Message]],
    arguments: Sequence[Mapping[str, Any]] = (),
    *,
    add_generation_prompt: bool = False,
) -> list[tuple[str, str | None]]:
    """Texts of conversations, each with None, or with the drop cause where the template refuses the row.

    `arguments` are those of each row; rows with the same ones are rendered together. Left out: there are none.
    """

    def render_all(at: Sequence[int]) -> list[tuple[str, str | None]]:
        rows, given = [conversations[row] for row in at], arguments[at[0]] if arguments else None
        try:
            texts = render(tokenizer, template, rows, given, add_generation_prompt=add_generation_prompt)
            return [(text, None) for text in texts]
        except Exception as cause:  # a template may raise anything; find the rows it refuses
            if len(at) > 1:
                return [render_all([row])[0] for row in at]
            return [("", f"{TEMPLATE_FAILS}: {(str(cause).strip() or type(cause).__name__)[:200]}")]

    if not any(arguments):
        return render_all(range(len(conversations))) if conversations else []
    groups: dict[str, list[int]] = {}
    for row, given in enumerate(arguments):
        groups.setdefault(json.dumps(given, default=str), []).append(row)
    rendered = {row: text for at in groups.values() for row, text in zip(at, render_all(at), strict=True)}
    return [rendered[row] for row in range(len(conversations))]


def with_empty_system(messages: list[Message], chat: ChatFormat) -> list[Message]:
    """Put an empty system turn first, where the template takes one and the conversation has none."""
    if messages[0]["role"] in SYSTEM_ROLES or not chat.takes_empty_system:
        return messages
    return [_EMPTY_SYSTEM, *messages]


@dataclass(frozen=True)
class ChatFormat:
    """What a template writes around a user turn and an answer.

    Args:
        template: its jinja text.
        end_of_turn: id of the first special token after an answer; None where the template writes none.
        after_answer: everything written after an answer.
        trailing_ids: how many tokens follow the end-of-turn token.
        user_header: what stands between an answer and the next user text, less what ends the answer.
        takes_empty_system: whether it speaks of system turns, and renders an empty one without failing.
        loses: kinds of turns that it leaves out without a word, of: system, developer, tool, tool_calls.
    """

    template: str
    end_of_turn: int | None
    after_answer: str
    trailing_ids: int
    user_header: str
    takes_empty_system: bool
    loses: frozenset[str]


def inspect_template(tokenizer: PreTrainedTokenizerBase, template: str) -> ChatFormat:
    """Find out what the template writes after an answer and before a user text.

    Raises:
        DataError: the template does not compile, fails on one user turn with an answer, or leaves the texts out.
    """
    check_template(tokenizer, template, f"tokenizer {tokenizer.name_or_path!r}")
    turns = [*QUESTION, {"role": "assistant", "content": _ANSWER}]
    after = render(tokenizer, template, [turns])[0].rsplit(_ANSWER, 1)[1]
    tail = tokenizer(after, add_special_tokens=False, verbose=False)["input_ids"] if after else []
    ends = special_ids(tokenizer)
    at = next((index for index, token in enumerate(tail) if token in ends), None)
    return ChatFormat(
        template=template,
        end_of_turn=None if at is None else tail[at],
        after_answer=after,
        trailing_ids=0 if at is None else len(tail) - at - 1,
        user_header=_user_header(tokenizer, template, turns, after if at is None else _token_text(tokenizer, tail[at])),
        takes_empty_system=_takes_empty_system(tokenizer, template),
        loses=_lost_turns(tokenizer, template),
    )


def _takes_empty_system(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    mentioned = "system" in template or "<|im_start|>" in template  # the published implementation's question
    return mentioned and render_rows(tokenizer, template, [[_EMPTY_SYSTEM, *QUESTION]])[0][1] is None


def _lost_turns(tokenizer: PreTrainedTokenizerBase, template: str) -> frozenset[str]:
    """Kinds of turns of which nothing is left in the rendered text. One that fails is not lost: its rows will fail."""
    rendered = render_rows(tokenizer, template, list(_PROBES.values()))
    return frozenset(
        kind for kind, (text, cause) in zip(_PROBES, rendered, strict=True) if cause is None and _MARK not in text
    )


def _token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token))


def _user_header(tokenizer: PreTrainedTokenizerBase, template: str, turns: list[Message], end: str) -> str:
    follow_up = _ASK + "again"
    text, cause = render_rows(tokenizer, template, [[*turns, {"role": "user", "content": follow_up}]])[0]
    if cause is not None or _ANSWER not in text or follow_up not in text:
        return ""
    between = text.rsplit(_ANSWER, 1)[1].split(follow_up, 1)[0]
    return between.partition(end)[2].lstrip() if end else between


def head_text(
    tokenizer: PreTrainedTokenizerBase,
    chat: ChatFormat,
    system: list[Message],
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """What a rendered conversation begins with: BOS and the system turn, given or the template's default, and tools."""
    text, cause = render_rows(tokenizer, chat.template, [[*system, *QUESTION]], [arguments or {}])[0]
    if cause is not None or _ASK not in text:
        return ""
    return text.split(_ASK, 1)[0].removesuffix(chat.user_header)


def barrier_token(tokenizer: PreTrainedTokenizerBase, template: str, *, add_generation_prompt: bool) -> str:
    """The last special token that the template writes behind a user's text.

    A tokenizer of the Rust library takes added tokens out of a text first and works on each piece between them alone.
    So from such a token on, the ids of a text do not depend on what came before: a prompt need not be tokenised once
    more for each answer. It must be a token whose place no other one can take, and that looks at no neighbour.

    Returns:
        The token's text; "" where there is none.
    """
    after = render(tokenizer, template, [QUESTION], add_generation_prompt=add_generation_prompt)[0].rsplit(_ASK, 1)[-1]
    added = list(tokenizer.added_tokens_decoder.values())
    candidates = (token for token in added if token.content in after and not (token.normalized or token.single_word))
    safe = (
        token.content
        for token in candidates
        if token.content.strip() == token.content
        and not any(_takes_place(other.content, token.content) for other in added)
    )
    return max(safe, key=after.rfind, default="")


def _takes_place(other: str, text: str) -> bool:
    """Whether a match of `other`, or of the same text begun earlier, could cover `text` or its beginning."""
    return (text in other and text != other) or any(other.endswith(text[:size]) for size in range(1, len(text)))


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that can end a turn: special and added tokens, without added whitespace (Gemma's newlines)."""
    added: dict[int, Any] = tokenizer.added_tokens_decoder
    visible = frozenset(token for token, entry in added.items() if str(entry).strip())
    return visible | frozenset(tokenizer.all_special_ids)
