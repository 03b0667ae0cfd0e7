"""One run of the comparison in a process of its own, as by `simpo train`, with what it cost: see demo_objectives.py."""

import json
import resource
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def peak_memory() -> float:
    """Most memory that this process has held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts what the parent held, too, when it started this process
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 2**20 if sys.platform == "darwin" else used / 1024


def main(report: str, *words: str) -> int:
    """Train with the words of `simpo train`; leave the costs in the file `report`."""
    sys.path.insert(0, str(ROOT))
    import simpo.run  # noqa: F401  the libraries are no cost of an objective
    from simpo import cli

    before, start, begun = peak_memory(), time.process_time(), time.perf_counter()
    code = cli.main(["train", *words])
    costs = {
        "cpu_seconds": time.process_time() - start,
        "seconds": time.perf_counter() - begun,
        "peak_mb": peak_memory(),
        "above_libraries_mb": peak_memory() - before,
    }
    Path(report).write_text(json.dumps(costs))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
