"""Prompts to responses, kept as they are finished; what is left to do follows from the prompts and the store alone.

Groups of prompts are cut from all prompts, not from those that are left, so a response is sampled beside the same
others whether or not the run was interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tqdm import tqdm

from simpo.engines.base import Engine, Failure, Request, Sample
from simpo.sampling.policy import on_cpu
from simpo.sampling.prompts import Prompt
from simpo.sampling.settings import PolicySettings
from simpo.store import Record, Store

_LONG = timedelta(days=30)

Outcomes = list[Sample | Failure]


@dataclass(frozen=True)
class Work:
    """What is asked.

    Args:
        groups: prompts that are sampled together; those with an error are kept without asking.
        requests_of: the requests of a prompt, the same number each time.
        record_of: what is kept of a prompt and the outcomes of its requests, in their order; without outcomes for a
            prompt with an error.
    """

    groups: Sequence[Sequence[Prompt]]
    requests_of: Callable[[Prompt], Sequence[Request]]
    record_of: Callable[[Prompt, Outcomes], Record]


class Processes:
    """The processes of this run: one, or those that a launcher started."""

    def __init__(self, settings: PolicySettings) -> None:
        self.rank, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._state: Any = None
        if self.count > 1:
            from accelerate import PartialState

            # Ranks wait for the slowest one, which may take as long as the run; and CUDA must not start here where
            # vLLM is going to choose devices.
            self._state = PartialState(cpu=on_cpu(settings) or settings.engine != "transformers", timeout=_LONG)

    def wait(self) -> None:
        """Until every process is here."""
        if self._state is not None:
            self._state.wait_for_everyone()


def group_by_length(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """Groups of at most `size` prompts of similar length, the longest first; prompts with an error before them.

    Longest first: what does not fit into memory shows at once, and the remaining time is not underrated.
    """
    ordered = sorted((prompt for prompt in prompts if prompt.error is None), key=lambda p: (-len(p.ids), p.row))
    broken = [prompt for prompt in prompts if prompt.error is not None]
    return ([broken] if broken else []) + [ordered[at : at + size] for at in range(0, len(ordered), size)]


def sample_into(
    store: Store,
    work: Work,
    open_engine: Callable[[], AbstractContextManager[Engine]],
    processes: Processes,
    *,
    finish: Callable[[Store], dict[str, Any]],
) -> dict[str, Any]:
    """Sample what a store does not hold yet, each process its part; `finish` gives the summary, on rank 0.

    Args:
        store: where records go; entered and left here.
        work: what is asked; of the groups each process takes its part.
        open_engine: the engine for the time of a `with`; called only where something is left to do.
        processes: of this run.
        finish: called when all is done, with the open store; what it returns is the store's summary.

    Raises:
        StoreError, EngineError, ModelError: with what to do about it. What was done stays.
    """
    own = work.groups[processes.rank :: processes.count]
    summary: dict[str, Any] = {}
    with ExitStack() as stack:
        if processes.rank == 0:
            stack.enter_context(store)  # the others read what it has mended
        processes.wait()
        if processes.rank > 0:
            stack.enter_context(store)
        _Sampling(store, work, own, open_engine, quiet=processes.rank > 0).run()
        processes.wait()
        if processes.rank == 0:
            summary = finish(store)
            store.finish(summary)
        processes.wait()
    return summary


@dataclass
class _Sampling:
    """One process's part."""

    store: Store
    work: Work
    groups: Sequence[Sequence[Prompt]]
    open_engine: Callable[[], AbstractContextManager[Engine]]
    quiet: bool
    _asked: list[tuple[Prompt, int, int]] = field(default_factory=list)

    def run(self) -> None:
        prompts = [prompt for group in self.groups for prompt in group]
        with tqdm(
            total=len(prompts),
            initial=sum(prompt.key in self.store.done for prompt in prompts),
            unit="prompt",
            desc="Sampling",
            disable=self.quiet,
            file=sys.stderr,
            mininterval=1.0,
        ) as bar:
            for prompt in prompts:
                if prompt.error is not None and prompt.key not in self.store.done:
                    self.store.append(prompt.key, self.work.record_of(prompt, []))
                    bar.update()
            if all(prompt.key in self.store.done for prompt in prompts):
                return
            with self.open_engine() as engine:
                for prompt, outcomes in self._answers(engine):
                    if prompt.key not in self.store.done:
                        self.store.append(prompt.key, self.work.record_of(prompt, outcomes))
                        bar.update()

    def _answers(self, engine: Engine) -> Iterator[tuple[Prompt, Outcomes]]:
        """Each prompt with the outcomes of its requests, as soon as all of them are there."""
        found: dict[str, dict[int, Sample | Failure]] = {}
        for number, outcome in engine.generate(self._requests(together=engine.batch_size is not None)):
            prompt, place, count = self._asked[number]
            mine = found.setdefault(prompt.key, {})
            mine[place] = outcome
            if len(mine) == count:
                yield prompt, [mine[at] for at in range(count)]
                del found[prompt.key]

    def _requests(self, *, together: bool) -> Iterator[Request]:
        for group in self.groups:
            sound = [prompt for prompt in group if prompt.error is None]
            left = [prompt for prompt in sound if prompt.key not in self.store.done]
            # an engine that computes requests together is given the same ones together again
            for prompt in sound if left and together else left:
                requests = self.work.requests_of(prompt)
                for place, request in enumerate(requests):
                    self._asked.append((prompt, place, len(requests)))
                    yield request
