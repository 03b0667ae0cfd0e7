"""GPUs by name: memory, peak, bandwidth. The figures and their sources stand in `gpus.yaml`."""

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from simpo.errors import ConfigError

_MIB = 2**20
_TABLE = Path(__file__).with_name("gpus.yaml")


class Gpu(NamedTuple):
    """One device.

    Fields:
        name, title: for the command line, and for people.
        memory: bytes.
        flops: dense bf16 peak in FLOP/s.
        bandwidth: bytes a second of its memory.
        link: bytes a second in one direction to the other GPUs of the machine.
    """

    name: str
    title: str
    memory: int
    flops: float
    bandwidth: float
    link: float

    @property
    def cuda(self) -> bool:
        """Whether CUDA's kernels run on it."""
        return self.name != "cpu"


@functools.cache
def gpu_table() -> Mapping[str, Mapping[str, Any]]:
    """The rows of `gpus.yaml` by name."""
    table: Mapping[str, Mapping[str, Any]] = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return table


def find_gpu(
    name: str, *, memory: float | None = None, tflops: float | None = None, bandwidth: float | None = None
) -> Gpu:
    """A GPU of the table, with figures of one's own in place of the table's; or another one, by its figures alone.

    Args:
        name: in the table, or any other where all three figures are given.
        memory: GiB; above 0.
        tflops: dense bf16 TFLOP/s; above 0.
        bandwidth: GB/s of its memory; above 0.

    Raises:
        ConfigError: the name is unknown and a figure is missing, or a figure is not above 0.
    """
    for option, value in (("memory", memory), ("tflops", tflops), ("bandwidth", bandwidth)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{option} {value:g} must be a number above 0")
    row = gpu_table().get(name.lower())
    if row is None and None in (memory, tflops, bandwidth):
        raise ConfigError(
            f"--gpu {name}: not in the table; write one of {', '.join(gpu_table())}, or give its figures: "
            "--memory (GiB), --tflops (dense bf16) and --bandwidth (GB/s)"
        )
    row = row or {"title": name, "memory": None, "tflops": tflops, "bandwidth": bandwidth, "link": 32}
    found = row["memory"] * _MIB if row["memory"] else _ram()
    return Gpu(
        name.lower(),
        row["title"],
        int(memory * 2**30) if memory else found,
        (tflops or row["tflops"]) * 1e12,
        (bandwidth or row["bandwidth"]) * 1e9,
        row["link"] * 1e9,
    )


def _ram() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
