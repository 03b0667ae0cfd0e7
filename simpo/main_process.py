"""What the main process does for all processes of a run."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from simpo.errors import SimPOError

_T = TypeVar("_T")


def on_main(work: Callable[[], _T], patience: timedelta | None = None) -> _T:
    """What the main process finds, or fails with, on all of them; every process must call it.

    Args:
        work: done by the main process alone; what it returns can be pickled.
        patience: how long the others wait for it. None: as long as for any collective (`ddp_timeout`), after which
            they would end the run.

    Raises:
        SimPOError: what the main process raised, on every process. Of another error, which may not survive the way,
            the others get its text: none of them waits for a process that has left.
    """
    state = PartialState()
    waiting: Any = None
    if patience is not None and state.num_processes > 1:
        waiting = dist.new_group(timeout=patience)  # each group has a time-out of its own
        _meet(waiting)  # NCCL connects at the first call, for which it waits as long as for any other
    outcome: list[Any] = [None, None]
    own: Exception | None = None
    if state.is_main_process:
        try:
            outcome[0] = work()
        except SimPOError as error:
            outcome[1] = error
        except Exception as error:
            own, outcome[1] = error, SimPOError(f"the main process failed: {type(error).__name__}: {error}")
    if waiting is not None:
        _meet(waiting)
        dist.destroy_process_group(waiting)
    found, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise own or failure
    return cast(_T, found)


def _meet(group: Any) -> None:
    flag = torch.zeros(1, device=PartialState().device)
    dist.all_reduce(flag, group=group)
    flag.item()  # a GPU's queue would not keep the process waiting
