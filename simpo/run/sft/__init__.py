"""Supervised fine-tuning on TRL's `SFTTrainer`: the stage that makes the model a SimPO run starts from."""

from simpo.run.sft.settings import SFTRunSettings, check_sft_settings, read_sft_settings
from simpo.run.sft.train import run_sft

__all__ = ["SFTRunSettings", "check_sft_settings", "read_sft_settings", "run_sft"]
