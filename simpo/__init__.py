"""SimPO: reference-free preference optimisation (arXiv 2405.14734).

    from simpo import SimPOConfig, SimPOTrainer

Names are imported when first used, so that `import simpo` and `simpo --help` load no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simpo.config import PreferenceConfig as PreferenceConfig
    from simpo.config import SimPOConfig as SimPOConfig
    from simpo.trainer import PreferenceTrainer as PreferenceTrainer
    from simpo.trainer import SimPOTrainer as SimPOTrainer

__version__ = "0.1.0"
__all__ = ["PreferenceConfig", "PreferenceTrainer", "SimPOConfig", "SimPOTrainer", "__version__"]

_HOME = {
    "PreferenceConfig": "simpo.config",
    "PreferenceTrainer": "simpo.trainer",
    "SimPOConfig": "simpo.config",
    "SimPOTrainer": "simpo.trainer",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'simpo' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
