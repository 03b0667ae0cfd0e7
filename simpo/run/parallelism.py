"""Splitting one sequence, or one matrix, over several devices: refused before anything is read."""

import os
from typing import Any

from simpo.errors import ConfigError

_KINDS = {"tp": "tensor", "cp": "context", "sp": "sequence"}


def check_parallelism(args: Any) -> None:
    """Refuse tensor, context and sequence parallelism, set by the training settings or by `accelerate launch`.

    Context parallelism cuts a row into slices of equal length at fixed places, and its ring passes keys along by one
    causal mask. In a pack the prompt is read by two responses, and pairs do not see one another: no slice of it has
    such a mask.

    Raises:
        ConfigError: which kind, where it was set, and what to use instead.
    """
    config = getattr(args, "parallelism_config", None)
    launched = os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() in ("1", "true")
    for key, kind in _KINDS.items():
        given = getattr(config, f"{key}_size", 1) or 1
        variable = f"PARALLELISM_CONFIG_{key.upper()}_SIZE"
        started = int(os.environ.get(variable, "1") or 1) if launched else 1
        if max(given, started) > 1:
            where = f"parallelism_config: {key}_size" if given > 1 else f"parallelism_config_{key}_size of the launcher"
            raise ConfigError(f"{where} {max(given, started)}: {kind} parallelism is not supported. {INSTEAD}")


INSTEAD = (
    "A pack's segments lie whole on one device. For pairs that one GPU does not hold: ZeRO-3 or FSDP2, "
    "gradient_checkpointing: true, max_tokens_per_microbatch at the longest pair's length (each pair then runs alone), "
    "offload_param_device: cpu in the ZeRO-3 file, an adapter (use_peft: true), and at last a lower max_length"
)
