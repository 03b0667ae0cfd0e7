"""Making a tokenised pair fit into max_length, in the ways that tokenisation modes and `truncation` define."""

from collections.abc import Callable

from simpo.data.schema import EMPTY_RESPONSE, EQUAL, EQUAL_AFTER_CUT, Side

TURNS_CUT = "oldest turns left out"
PROMPT_CUT = "prompt shortened"
SYSTEM_CUT = "system turn lost"
CHOSEN_CUT = "chosen shortened"
REJECTED_CUT = "rejected shortened"
TEXT_AFTER_END = "text after an end-of-turn token removed"

TRUNCATION_CAUSES: dict[str, str] = {
    TURNS_CUT: "raise max_length, or max_prompt_length",
    PROMPT_CUT: "raise max_length, or max_prompt_length",
    SYSTEM_CUT: "raise max_prompt_length: the system turn is more than half of it",
    CHOSEN_CUT: "raise max_length, or lower max_prompt_length",
    REJECTED_CUT: "raise max_length, or lower max_prompt_length",
    TEXT_AFTER_END: "remove special tokens from the texts of these rows",
}
"""What was shortened -> what to do about it."""


class TokenPair:
    """Token ids of one pair, and what was cut from them.

    Args:
        prompt, chosen, rejected: token ids; the prompt is shared by both sides.

    Attributes:
        cuts: what was cut (keys of `TRUNCATION_CAUSES`).
        only: the side of a row that has one response. The other, the same until then, is emptied by `drop_cause`.
    """

    __slots__ = ("chosen", "cuts", "only", "prompt", "rejected")

    def __init__(self, prompt: list[int], chosen: list[int], rejected: list[int]) -> None:
        self.prompt, self.chosen, self.rejected = prompt, chosen, rejected
        self.cuts: list[str] = []
        self.only: Side | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longer response: what max_length bounds."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))

    def drop_cause(self) -> str | None:
        """Why this pair cannot be trained on, if so; an empty side would be 0/0 in the length-normalised reward."""
        if not self.prompt or not self.chosen or not self.rejected:
            return EMPTY_RESPONSE
        if self.only is not None:
            self._empty("rejected" if self.only == "chosen" else "chosen")
            return None
        if self.chosen == self.rejected:
            return EQUAL_AFTER_CUT if CHOSEN_CUT in self.cuts or REJECTED_CUT in self.cuts else EQUAL
        return None

    def _empty(self, side: Side) -> None:
        setattr(self, side, [])
        self.cuts = [cut for cut in self.cuts if cut != (CHOSEN_CUT if side == "chosen" else REJECTED_CUT)]


def truncate_standard(
    pair: TokenPair, max_length: int, max_prompt_length: int, shorten: Callable[[TokenPair, int], None]
) -> None:
    """Cut what does not fit, and nothing else.

    The prompt gives way first, as far as needed and at most down to max_prompt_length tokens. What then exceeds
    max_length is cut from the end of each response by that response's own budget.

    Args:
        pair: changed in place.
        max_length: bound on prompt plus one response, in tokens.
        max_prompt_length: a prompt that fits into this is never cut; less than max_length.
        shorten: brings the pair's prompt down to a number of tokens; asked only where needed.
    """
    longer = max(len(pair.chosen), len(pair.rejected))
    room = max(max_length - longer, min(len(pair.prompt), max_prompt_length))
    if len(pair.prompt) > room:
        shorten(pair, room)
    _cut_responses(pair, max_length - len(pair.prompt))


def cut_prompt(pair: TokenPair, room: int, head: int) -> None:
    """Take tokens out of a prompt behind its first `head` ones, so that `room` are left with its end."""
    if len(pair.prompt) > room:
        head = min(head, room)
        pair.prompt = pair.prompt[:head] + pair.prompt[len(pair.prompt) - (room - head) :]
        pair.cuts.append(PROMPT_CUT)


def truncate_paper(pair: TokenPair, max_length: int, max_prompt_length: int) -> None:
    """Cut as the published implementation does.

    If prompt plus longer response exceeds max_length, the prompt keeps its last max_prompt_length tokens, BOS or not;
    if it still exceeds, both responses keep their first max_length - max_prompt_length tokens.
    """
    if pair.length > max_length:
        if len(pair.prompt) > max_prompt_length:
            pair.prompt = pair.prompt[-max_prompt_length:]
            pair.cuts.append(PROMPT_CUT)
        if pair.length > max_length:
            _cut_responses(pair, max_length - max_prompt_length)


def _cut_responses(pair: TokenPair, budget: int) -> None:
    if len(pair.chosen) > budget:
        pair.chosen = pair.chosen[:budget]
        pair.cuts.append(CHOSEN_CUT)
    if len(pair.rejected) > budget:
        pair.rejected = pair.rejected[:budget]
        pair.cuts.append(REJECTED_CUT)
