"""Data are read and tokenised by one process of a machine; the others take what it left."""

import json
import sys
from pathlib import Path

import pytest

from tests.watched import started

COUNT = """
import os, sys
from pathlib import Path
import datasets
from simpo.cli import main

folder = Path(sys.argv[1])
own_map = datasets.Dataset.map

def counted(self, function=None, *args, **kwargs):
    def noted(*rows, **named):
        with (folder / f"rank-{os.environ['RANK']}").open("a") as file:
            file.write(f"{getattr(function, '__name__', '?')}\\n")
        return function(*rows, **named)
    named = kwargs.get("new_fingerprint")  # others find their cache by the function
    return own_map(self, noted if named else function, *args, **kwargs)

datasets.Dataset.map = counted
(folder / f"rank-{os.environ['RANK']}").touch()
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "sft"])
def test_tokenised_once_by_a_machine(make_config, tmp_path: Path, verb: str) -> None:
    script = tmp_path / "simpo_counts.py"
    script.write_text(COUNT)
    config = make_config(max_steps=1)
    if verb == "sft":
        talks = tmp_path / "talks.jsonl"
        talk = [{"role": "user", "content": "What comes after 3?"}, {"role": "assistant", "content": "4."}]
        talks.write_text((json.dumps({"messages": talk}) + "\n") * 24)
        pairs_only = dict.fromkeys(("max_prompt_length", "eval_dataset_mixer", "max_length", "monitor"))
        config = make_config(max_steps=1, dataset_mixer={str(talks): 1.0}, per_device_train_batch_size=2, **pairs_only)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, str(script), str(tmp_path), verb, str(config)]
    with started(command, tmp_path / "printed", HF_DATASETS_CACHE=str(tmp_path / "cache")) as run:
        assert run.wait(300) == 0, run.printed
    first, second = ((tmp_path / f"rank-{rank}").read_text().split() for rank in (0, 1))
    assert first and second == []
