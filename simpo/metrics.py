"""Per-pair results -> logged numbers; the only place that reduces over ranks.

Shape letters: B pairs of a micro-batch, N pairs of a data set, M metrics.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from simpo.losses import PairLogps, PairLosses, log_ratios

# Columns of the per-pair results, in this order. The log keys are those of TRL; the averages are nats per token.
PAIR_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "lengths/chosen",
    "lengths/rejected",
)


@torch.no_grad()
def pair_metrics(logps: PairLogps, results: PairLosses) -> dict[str, Tensor]:
    """The numbers that are logged for each pair, detached.

    Returns:
        [B] float32 for each name in `PAIR_METRICS`. `logps/*` are means over the response's tokens (nats per token),
        `rewards/accuracies` is 1 where the chosen response has the larger reward. With log-probs of the initial policy
        also `log_ratios/*`, log pi(y) / ref(y) in nats, and with an estimate of it `kl`. Numbers of a response that an
        unpaired row does not have, and of pairs there, are NaN.
    """
    has_chosen, has_rejected = (_nan_where_zero(lengths) for lengths in (logps.chosen_lengths, logps.rejected_lengths))
    margins = (results.chosen_rewards - results.rejected_rewards) * has_chosen * has_rejected
    columns = (
        results.losses.detach(),
        results.chosen_rewards * has_chosen,
        results.rejected_rewards * has_rejected,
        margins,
        (margins > 0).float() * has_chosen * has_rejected,
        (logps.chosen / logps.chosen_lengths).detach(),
        (logps.rejected / logps.rejected_lengths).detach(),
        logps.chosen_lengths * has_chosen,
        logps.rejected_lengths * has_rejected,
    )
    metrics = dict(zip(PAIR_METRICS, columns, strict=True))
    if logps.ref_chosen is not None:
        chosen, rejected = log_ratios(logps)
        metrics |= {"log_ratios/chosen": chosen * has_chosen, "log_ratios/rejected": rejected * has_rejected}
    if logps.kl is not None:
        metrics["kl"] = logps.kl.expand_as(logps.chosen)
    return metrics


def _nan_where_zero(lengths: Tensor) -> Tensor:
    return torch.where(lengths > 0, 1.0, torch.nan)


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


class RunningMeans:
    """Weighted means of per-pair metrics since the last `pop`, kept on the device and reduced over ranks only then.

    Adding costs no device synchronisation; `pop` costs one collective and one copy to the host.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None  # [2, M] weighted sums, and the sums of their weights
        self._tokens = 0

    def add(self, metrics: Mapping[str, Tensor], weights: Tensor, tokens: int = 0) -> None:
        """Add a micro-batch: [B] for each metric, the [B] weights (0 for fillers), and the tokens it processed.

        A metric that is NaN for a pair is left out of that metric's mean.
        """
        self._names = tuple(metrics)
        rows = torch.stack([*metrics.values()]).float()
        present = ~rows.isnan() * weights
        sums = torch.stack([(rows.nan_to_num(0.0) * present).sum(dim=1), present.sum(dim=1)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._tokens += tokens

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all ranks since the last call, and `num_tokens`, the sum of tokens; empty when nothing was added.

        Every rank must call it.
        """
        if self._sums is None:
            return {}
        wide = _widest(self._sums.device)
        local = torch.cat((self._sums.to(wide).flatten(), self._sums.new_tensor([self._tokens], dtype=wide)))
        *sums, tokens = accelerator.reduce(local, reduction="sum").tolist()
        self._sums, self._tokens = None, 0
        columns = zip(self._names, sums, sums[len(self._names) :], strict=False)
        return {name: value / count for name, value, count in columns if count} | {"num_tokens": tokens}


class PairResults:
    """Per-pair metrics of a whole data set, gathered over ranks and put back into the data set's order."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._rows: list[Tensor] = []  # each [B, M + 2]: metrics, weight, row of the data set

    def add(self, metrics: Mapping[str, Tensor], weights: Tensor, pair_index: Tensor) -> None:
        """Add a micro-batch: [B] for each metric, the [B] weights and the [B] rows of the data set."""
        self._names = tuple(metrics)
        self._rows.append(torch.stack([*metrics.values(), weights, pair_index], dim=1).to(_widest(weights.device)))

    def gather(self, accelerator: Accelerator) -> dict[str, np.ndarray]:
        """[N] float64 for each metric, fillers left out, in the order of the data set. Every rank must call it."""
        if not self._rows:
            return {}
        local = torch.cat(self._rows)
        padded = accelerator.pad_across_processes(local, dim=0)  # padding has weight 0, as fillers have
        table = accelerator.gather(padded).cpu().numpy()
        table = table[table[:, -2] > 0]
        table = table[np.argsort(table[:, -1], kind="stable")]
        return dict(zip(self._names, table[:, :-2].T, strict=True))


def evaluation_means(results: Mapping[str, np.ndarray], *, sft_weight: float = 0.0) -> dict[str, float]:
    """Means over the pairs of a data set, as they are logged.

    Numbers that rows of one response do not have are left out; a loss never is. With `sft_weight`, `loss` holds the
    chosen responses' mean token negative log-likelihood too, and `preference_loss` is the loss without it.

    Args:
        results: [N] for each metric, from `PairResults.gather`.
        sft_weight: as in `simpo.losses.step_loss`.
    """
    present = {name: values if name == "loss" else values[~np.isnan(values)] for name, values in results.items()}
    means = {name: float(values.mean()) for name, values in present.items() if len(values)}
    if sft_weight:
        tokens = np.nan_to_num(results["lengths/chosen"])
        nll = -float((np.nan_to_num(results["logps/chosen"]) * tokens).sum() / max(tokens.sum(), 1))
        means["preference_loss"], means["loss"] = means["loss"], means["loss"] + sft_weight * nll
    return means


def mean_logged_loss(history: Iterable[Mapping[str, float]], default: float) -> float:
    """The mean of the losses of a log, each of which is that of the steps since the one before.

    Args:
        history: entries with `step`, those of training with `loss`, in order.
        default: where there are none.
    """
    entries = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    steps = [0.0, *(step for step, _ in entries)]
    total = sum((step - before) * loss for (step, loss), before in zip(entries, steps, strict=False))
    return total / steps[-1] if entries else default
