"""The objectives by name: which loss, what it needs, and which settings it uses.

A new objective is a function in `simpo.losses` and a line in `OBJECTIVES`; its keyword arguments are its settings.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from simpo.losses import (
    Objective,
    PairLosses,
    alphapo_loss,
    cpo_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    rdpo_loss,
    rrhf_loss,
    simpo_loss,
    slic_loss,
)


class ObjectiveSpec(NamedTuple):
    """An objective of the registry.

    Fields:
        title: its name in texts.
        paper: its paper's number on arXiv.
        loss: function of `PairLogps` and keyword arguments, each of them a setting with its default.
        reference: needs the log-probs of the initial policy.
        kl: needs the estimate of KL(pi || ref), and with it mismatched pairs; also takes rows of one response.
    """

    title: str
    paper: str
    loss: Callable[..., PairLosses]
    reference: bool = False
    kl: bool = False

    @property
    def knobs(self) -> dict[str, Any]:
        """Settings that the loss uses, with their defaults."""
        parameters = inspect.signature(self.loss).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

    def bind(self, values: Mapping[str, Any]) -> Objective:
        """The loss at these settings; those of other objectives, and those that are None, are left out."""
        given = {name: values[name] for name in self.knobs if values.get(name) is not None}
        return functools.partial(self.loss, **given)


OBJECTIVES: dict[str, ObjectiveSpec] = {
    "simpo": ObjectiveSpec("SimPO", "2405.14734", simpo_loss),
    "dpo": ObjectiveSpec("DPO", "2305.18290", dpo_loss, reference=True),
    "ipo": ObjectiveSpec("IPO", "2310.12036", ipo_loss, reference=True),
    "kto": ObjectiveSpec("KTO", "2402.01306", kto_loss, reference=True, kl=True),
    "r-dpo": ObjectiveSpec("R-DPO", "2403.19159", rdpo_loss, reference=True),
    "cpo": ObjectiveSpec("CPO", "2401.08417", cpo_loss),
    "orpo": ObjectiveSpec("ORPO", "2403.07691", orpo_loss),
    "rrhf": ObjectiveSpec("RRHF", "2304.05302", rrhf_loss),
    "slic-hf": ObjectiveSpec("SLiC-HF", "2305.10425", slic_loss),
    "alphapo": ObjectiveSpec("AlphaPO", "2501.03884", alphapo_loss),
}


def all_knobs() -> list[str]:
    """Every setting that some objective uses."""
    return list(dict.fromkeys(knob for spec in OBJECTIVES.values() for knob in spec.knobs))
