"""An annotator of its settings: a model is loaded, a server connected to, a function imported."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from simpo.errors import ConfigError
from simpo.onpolicy.annotators.base import Annotator
from simpo.onpolicy.annotators.function import FunctionAnnotator
from simpo.onpolicy.annotators.judge import Judge, connect
from simpo.onpolicy.annotators.kinds import AnySettings, JudgeSettings, PairRMSettings, RewardModelSettings
from simpo.onpolicy.annotators.pairrm import PairRM
from simpo.onpolicy.annotators.reward import RewardModel


def load_annotator(settings: AnySettings, device: torch.device) -> Annotator:
    """Make an annotator: load its model, or connect, or import.

    Raises:
        ConfigError, ModelError: it cannot be made; the message says why.
    """
    if isinstance(settings, RewardModelSettings):
        return RewardModel(settings, device)
    if isinstance(settings, PairRMSettings):
        return PairRM(settings, device)
    if isinstance(settings, JudgeSettings):
        return Judge(settings, connect(settings))
    return FunctionAnnotator(import_function(settings.function))


def import_function(name: str) -> Callable[..., Any]:
    """The function of `module:function`.

    Raises:
        ConfigError: it cannot be imported, or is none.
    """
    module, _, path = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # what `python -m` does, and a console script does not
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of the user's may raise anything
        raise ConfigError(f"function: {name} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ConfigError(f"function: {name} is no function")
    return found  # type: ignore[no-any-return]
