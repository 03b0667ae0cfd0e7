"""One pack through the policy and the objective.

Shape letters: B pairs, S scored tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from simpo.logps import response_logps
from simpo.losses import Objective, PairLogps, PairLosses
from simpo.metrics import pair_metrics
from simpo.packing import PackedBatch
from simpo.parity import MODEL_INPUTS, check_parity

if TYPE_CHECKING:
    from simpo.config import PreferenceConfig


class Scorer:
    """Asks the policy for log-probs of packs, and the objective for losses.

    Args:
        policy: before an engine wraps it; its config and dtype are read.
        objective: maps `PairLogps` to `PairLosses`.
        args: settings of the run.

    Attributes:
        kl: the estimate of KL(pi || ref) that holds at present, a scalar in nats; None where the objective has none.
        parity_checked: whether packed and ordinary forward were compared, which happens before the first pack.
    """

    def __init__(self, policy: nn.Module, objective: Objective, args: PreferenceConfig) -> None:
        self.policy, self.objective, self.args = policy, objective, args
        self.kl: Tensor | None = None
        self.parity_checked = False

    @property
    def exact(self) -> bool:
        """Whether log-probs are computed in float32 throughout."""
        rounded = self.args.bf16 or self.args.fp16 or self.args.tf32
        return not rounded and next(self.policy.parameters()).dtype == torch.float32

    def response_logps(self, model: nn.Module, pack: PackedBatch) -> tuple[Tensor, Tensor]:
        """[B], [B] log-probs of chosen and rejected responses, summed, in nats.

        Args:
            model: the policy as the engine wraps it.
            pack: on its device.
        """
        return summed(self.token_logps(model, pack), pack)

    def token_logps(self, model: nn.Module, pack: PackedBatch) -> Tensor:
        """[S] log-probs of all answer tokens, in nats."""
        self._check_parity_once(model)
        return _token_logps(model, pack)

    def score(self, model: nn.Module, pack: PackedBatch) -> tuple[PairLogps, PairLosses]:
        """What the objective saw of a pack, and what it says."""
        chosen, rejected = self.response_logps(model, pack)
        logps = PairLogps(
            chosen,
            rejected,
            pack["chosen_lengths"],
            pack["rejected_lengths"],
            pack.get("ref_chosen"),
            pack.get("ref_rejected"),
            self.kl,
        )
        return logps, self.objective(logps)

    def metrics(self, model: nn.Module, pack: PackedBatch) -> dict[str, Tensor]:
        """[B] for each name of `simpo.metrics.pair_metrics`."""
        return pair_metrics(*self.score(model, pack))

    def mismatched_log_ratios(self, model: nn.Module, mismatched: PackedBatch) -> Tensor:
        """[B] log pi / ref of responses of other pairs, in nats: their mean estimates KL(pi || ref)."""
        return self.response_logps(model, mismatched)[0] - mismatched["ref_chosen"]

    def _check_parity_once(self, model: nn.Module) -> None:
        if self.parity_checked:
            return
        self.parity_checked = True
        args = self.args
        check_policy(model, self.policy, device=args.device, max_length=args.max_length, exact=self.exact)


def check_policy(model: nn.Module, policy: nn.Module, *, device: torch.device, max_length: int, exact: bool) -> None:
    """Compare a policy's packed forward with its ordinary one, beyond its sliding window where pairs reach that.

    Args:
        model: the policy as the engine wraps it.
        policy: before that; its config is read.
        device: where it lies.
        max_length: tokens of the longest prompt with response.
        exact: it computes in float32.

    Raises:
        ModelError: the two disagree.
    """
    config: Any = policy.config
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    reached = window if window and window < max_length else None
    check_parity(model, vocabulary=text.vocab_size, device=device, exact=exact, window=reached)


def pack_logps(model: nn.Module, pack: PackedBatch) -> tuple[Tensor, Tensor]:
    """[B], [B] log-probs of chosen and rejected responses of a pack on the model's device, summed, in nats."""
    return summed(_token_logps(model, pack), pack)


def _token_logps(model: nn.Module, pack: PackedBatch) -> Tensor:
    return model(**{key: pack[key] for key in MODEL_INPUTS})  # type: ignore[literal-required]


def summed(token_logps: Tensor, pack: PackedBatch) -> tuple[Tensor, Tensor]:
    """[B], [B] sums over chosen and rejected responses of the [S] log-probs of a pack's answer tokens."""
    lengths = torch.stack((pack["chosen_lengths"], pack["rejected_lengths"]), dim=1)
    chosen, rejected = response_logps(token_logps, lengths.flatten()).view(-1, 2).unbind(dim=1)
    return chosen, rejected
