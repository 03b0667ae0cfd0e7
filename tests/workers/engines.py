"""Checkpoints of DDP and ZeRO-3 under other engines, and one that lacks a part: python engines.py FOLDER.

Prints a line for each start: what wrote the checkpoint, what read it, the exit code, and what was said.
"""

import json
import shutil
import sys
from pathlib import Path

from benchmarks.soak import runs


def say(name: str, process: runs.Processes) -> None:
    code = process.wait(300)
    words = ("error: ", "Going on from", "is damaged")
    said = [line for line in process.printed.read_text().splitlines() if any(word in line for word in words)]
    print(json.dumps({"start": name, "code": code, "said": said}), flush=True)


def unfinish(folder: Path) -> None:
    """As if it had been killed before its export."""
    manifest = json.loads((folder / "run_manifest.json").read_text())
    (folder / "run_manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    (folder / "model.safetensors").unlink()


def main(folder: Path) -> None:
    runs.warm(folder)
    runs.ENGINES["zero2"] = runs.ENGINES["zero3"] | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
    settings = {"max_steps": 2, "save_steps": 1, "eval_strategy": "no", "eval_dataset_mixer": None, "log_kl": False}
    for wrote, readers in (("ddp", ["zero3"]), ("zero3", ["ddp", "zero2"])):
        config, out = runs.make_config(folder, wrote, **settings), folder / wrote
        say(wrote, runs.start(config, wrote, folder / f"{wrote}.txt"))
        unfinish(out)
        for reader in readers:
            say(f"{wrote} under {reader}", runs.start(config, reader, folder / f"{wrote}-{reader}.txt"))
    next((out / "checkpoint-2").glob("global_step2/zero_pp_rank_1_*optim_states.pt")).unlink()
    shutil.copytree(out, folder / "before")
    say("zero3 without a part", runs.start(config, "zero3", folder / "part.txt"))


main(Path(sys.argv[1]))
