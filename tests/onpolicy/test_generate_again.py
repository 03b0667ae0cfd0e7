"""`simpo generate` into a folder that holds records: an interruption changes nothing, other settings are refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from simpo.errors import StoreError
from simpo.onpolicy import generate as module
from simpo.onpolicy.generate import run_generate
from simpo.store import read_records, read_summary
from tests.engines.serving import Server, echo
from tests.launching import environment, run
from tests.onpolicy.recorder import Recorder, records_of

WORKERS = Path(__file__).parents[1] / "workers"


def test_an_interrupted_run_goes_on_to_the_same_set(make_generate, monkeypatch) -> None:
    whole = make_generate(output_dir=str(make_generate().output_dir) + "-whole")
    run_generate(whole)
    settings = make_generate()
    kept: list[str] = []
    real = module.record_of

    def stop_after_three(prompt, seeds, outcomes):
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(prompt.key)
        return real(prompt, seeds, outcomes)

    monkeypatch.setattr(module, "record_of", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        run_generate(settings)
    assert len(records_of(settings)) == 3 and read_summary(settings.output_dir) is None
    again: list[str] = []
    monkeypatch.setattr(module, "record_of", lambda prompt, *rest: again.append(prompt.key) or real(prompt, *rest))
    run_generate(settings)
    assert records_of(settings) == records_of(whole)
    assert not set(kept) & set(again) and len(again) == 3


def test_other_batches_give_the_same_responses(make_generate) -> None:
    settings = make_generate()
    run_generate(settings)
    other = make_generate(output_dir=settings.output_dir + "-other", batch_size=1)
    run_generate(other)
    assert records_of(other) == records_of(settings)


def test_other_settings_or_prompts_are_refused(make_generate) -> None:
    run_generate(make_generate(), Recorder())
    with pytest.raises(StoreError, match=r"temperature: 0.8 there, 0.7 now"):
        run_generate(make_generate(temperature=0.7), Recorder())
    with pytest.raises(StoreError, match="prompts:"):
        run_generate(make_generate([{"prompt": "another"}]), Recorder())
    run_generate(make_generate(batch_size=3), Recorder())  # speed only


def test_a_model_that_was_trained_again_is_another_one(make_generate, tiny_dir, tmp_path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model)
    run_generate(make_generate(model_name_or_path=str(model)))
    weights = load_file(model / "model.safetensors")
    save_file({key: value + 1e-3 for key, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(StoreError, match=r"made with other settings .weights: "):
        run_generate(make_generate(model_name_or_path=str(model)))
    shutil.copy(Path(tiny_dir) / "model.safetensors", model)  # a copy is the same one
    run_generate(make_generate(model_name_or_path=str(model)))


def test_further_fields_of_requests_are_settings_too(make_generate) -> None:
    with Server(echo) as server:
        settings = {"engine": "server", "server_urls": [server.url], "use_cpu": False, "batch_size": 40}
        run_generate(make_generate(**settings))
        with pytest.raises(StoreError, match=r"server_extra: \{\} there"):
            run_generate(make_generate(**settings, server_extra={"top_k": 1}))


def kill(make_generate, tmp_path: Path, kills: int, seed: int) -> None:
    rows = [{"prompt": f"Question {number}: {'why ' * (number % 7)}?"} for number in range(40)]
    names = {"": "out", ".whole": "whole"}
    for suffix, folder in names.items():
        settings = asdict(make_generate(rows, output_dir=str(tmp_path / folder), num_responses=2, batch_size=4))
        given = {key: value for key, value in settings.items() if value not in (None, [], {})}
        (tmp_path / f"g.yaml{suffix}").write_text(yaml.safe_dump(given))
    config, folder = tmp_path / "g.yaml", tmp_path / "out"
    worker = [sys.executable, str(WORKERS / "kill_generate.py"), str(kills), str(seed)]
    worker += [str(config), str(folder), f"{config}.whole"]
    done = subprocess.run(worker, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    moments = [int(number) for number in re.findall(r"killed at (\d+) of 40", done.stdout)]
    assert len(moments) == kills and max(moments) < 40 and len(set(moments)) > 1
    whole, interrupted = list(read_records(tmp_path / "whole")), list(read_records(tmp_path / "out"))
    assert len(whole) == 40 and interrupted == whole
    lines = [json.loads(line)["key"] for path in (tmp_path / "out").glob("records-*") for line in path.open()]
    assert len(lines) == len(set(lines)) == 40


def test_killed_at_random_moments_it_ends_with_the_same_set(make_generate, tmp_path: Path) -> None:
    kill(make_generate, tmp_path, 3, seed=1)


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_same_set(make_generate, tmp_path: Path) -> None:
    kill(make_generate, tmp_path, 20, seed=2)


@pytest.mark.multiprocess
@pytest.mark.slow
def test_two_processes_give_the_set_of_one(make_generate, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {number}?"} for number in range(12)] + [{"prompt": ""}]
    alone = make_generate(rows, num_responses=2, batch_size=4)
    run_generate(alone)
    both = make_generate(rows, num_responses=2, batch_size=4, output_dir=str(tmp_path / "both"))
    given = {key: value for key, value in asdict(both).items() if value not in (None, [], {})}
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(given))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "simpo.cli", "generate", str(tmp_path / "g.yaml")]
    printed = run(command)
    assert printed.count("24 responses to 13 prompts") == 1
    shards = sorted((tmp_path / "both").glob("records-*"))
    assert len(shards) == 2 and records_of(both) == records_of(alone)

    # one of the files is torn, and another number of processes goes on
    os.truncate(shards[1], shards[1].stat().st_size - 3)
    run_generate(both)
    assert records_of(both) == records_of(alone)
    os.truncate(shards[0], 0)
    run(command)
    assert records_of(both) == records_of(alone)
