"""What drives a run, as memory and communication see it: one process, DDP, ZeRO or FSDP2."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from simpo.errors import ConfigError

ENGINES = ("single", "ddp", "zero2", "zero3", "fsdp2")


class Engine(NamedTuple):
    """How weights, gradients and optimizer states lie on the GPUs.

    Fields:
        kind: one of `ENGINES`.
        gpus: processes, one GPU each.
        offload_optimizer: optimizer states lie in the machine's RAM.
        offload_params: weights do too.
        reshard: FSDP2 frees the gathered weights of a layer after its forward.
        bucket: ZeRO's `reduce_bucket_size` in weights; None is `auto`, the square of the hidden size.
    """

    kind: str
    gpus: int
    offload_optimizer: bool = False
    offload_params: bool = False
    reshard: bool = True
    bucket: int | None = 500_000_000

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed keeps 16-bit weights and float32 masters."""
        return self.kind in ("zero2", "zero3")

    @property
    def shards_weights(self) -> bool:
        """Whether each GPU holds its part of the weights only."""
        return self.kind in ("zero3", "fsdp2")

    @property
    def shards_gradients(self) -> bool:
        """Whether each GPU keeps its part of the gradients only."""
        return self.kind in ("zero2", "zero3", "fsdp2")

    def __str__(self) -> str:
        """For people."""
        names = {"single": "one process", "ddp": "DDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2"}
        extra = ", all states in RAM" if self.offload_params else ""
        extra = extra or (", optimizer states in RAM" if self.offload_optimizer else "")
        return names[self.kind] + extra


def named_engine(kind: str | None, gpus: int) -> Engine:
    """The engine of a name; without one ZeRO-3, or one process where there is one GPU.

    Raises:
        ConfigError: the name is unknown, or does not go with so many GPUs.
    """
    kind = kind or ("single" if gpus == 1 else "zero3")
    if kind not in ENGINES:
        raise ConfigError(f"--engine {kind}: unknown; write one of {', '.join(ENGINES)}")
    if gpus < 1:
        raise ConfigError(f"--gpus {gpus} must be 1 or more")
    if kind == "single" and gpus > 1:
        raise ConfigError(f"--engine single uses one GPU, not {gpus}; write zero3, fsdp2, zero2 or ddp, or --gpus 1")
    return Engine(kind, gpus)


def launched_engine(path: Path, gpus: int | None = None) -> Engine:
    """The engine that an accelerate configuration starts.

    Args:
        path: of the file, as `simpo train --accelerate` takes it.
        gpus: processes, in place of the file's.

    Raises:
        ConfigError: the file cannot be read, or names an engine whose memory is not known here.
    """
    config = _read(path)
    gpus = int(config.get("num_processes") or 1) if gpus is None else gpus
    kind = str(config.get("distributed_type", "NO")).upper()
    if kind == "DEEPSPEED":
        return _deepspeed(path, config, gpus)
    if kind == "FSDP":
        return _fsdp(path, config.get("fsdp_config") or {}, gpus)
    if kind.startswith("MULTI_"):
        return named_engine("ddp", gpus)
    if kind in ("NO", "FALSE"):  # YAML takes the word without quotes for false
        return named_engine("single" if gpus == 1 else "ddp", gpus)
    raise ConfigError(f"{path}: distributed_type: {kind} is not known here; write --engine {', '.join(ENGINES)}")


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as an accelerate configuration: {error}") from error
    if not isinstance(config, dict) or not {"distributed_type", "num_processes"} & config.keys():
        raise ConfigError(f"{path}: is no accelerate configuration; `accelerate config` makes one")
    return config


def _deepspeed(path: Path, config: dict[str, Any], gpus: int) -> Engine:
    options = dict(config.get("deepspeed_config") or {})
    file = options.get("deepspeed_config_file")
    bucket: Any = Engine._field_defaults["bucket"]
    if file:
        zero = _zero_section(path, file)
        options, bucket = {"zero_stage": zero.get("stage")}, zero.get("reduce_bucket_size", bucket)
        options |= {
            f"{key}_device": (zero.get(key) or {}).get("device") for key in ("offload_optimizer", "offload_param")
        }
    stage = options.get("zero_stage")
    if stage not in (2, 3):
        raise ConfigError(f"{path}: zero_stage: {stage} is not planned for; stages 2 and 3 are")
    optimizer, weights = (
        str(options.get(key) or "none").lower() in ("cpu", "nvme")
        for key in ("offload_optimizer_device", "offload_param_device")
    )
    try:
        bucket = None if bucket == "auto" else int(float(bucket))
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{file}: reduce_bucket_size: {bucket!r} is no number; write e.g. 500000000") from None
    return Engine(f"zero{stage}", gpus, optimizer, weights, bucket=bucket)


def _zero_section(path: Path, file: Any) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: deepspeed_config_file: {file} cannot be read: {error}") from error
    section = (content.get("zero_optimization") or {}) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: deepspeed_config_file: {file} is no DeepSpeed configuration")
    return section


def _fsdp(path: Path, options: dict[str, Any], gpus: int) -> Engine:
    if int(options.get("fsdp_version", 1)) != 2:
        raise ConfigError(f"{path}: FSDP1 is not planned for; write fsdp_version: 2, as accelerate_configs/fsdp2.yaml")
    reshard = str(options.get("fsdp_reshard_after_forward", True)).lower() != "false"
    offload = str(options.get("fsdp_offload_params", False)).lower() == "true"
    return Engine("fsdp2", gpus, offload, offload, reshard)
