"""`simpo plan`: what it reads, what it says, and what it refuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from simpo import cli
from simpo.batching import Budget
from simpo.cli.launch import LAUNCH_CONFIGS, launch_config
from simpo.errors import ConfigError, ModelError
from simpo.flops import PairLengths, model_shape, training_flops
from simpo.planning import changes, plan
from simpo.planning.changes import lora
from simpo.planning.engine import Engine, launched_engine, named_engine
from simpo.planning.gpus import find_gpu, gpu_table
from simpo.planning.memory import Case, Memory, memory_of
from simpo.planning.plan import Run, largest_micro_batch, plan_run
from simpo.planning.timing import step_flops, times_of
from simpo.planning.workload import Workload, assumed_workload
from tests.planning.models import llama_8b, small

PAIR = PairLengths(172, 331, 312)


@pytest.fixture
def config(tmp_path: Path, tiny_dir: str, golden: dict[str, Any]) -> Path:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in golden["rows"]))
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({
        "model_name_or_path": tiny_dir, "dataset_mixer": {str(data): 1.0}, "total_train_batch_size": 8,
        "output_dir": str(tmp_path / "out"), "gradient_checkpointing": True,
    }))  # fmt: skip
    return file


def test_a_plan_from_the_data(config: Path, golden: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    words = ["plan", str(config), "--gpus", "2", "--gpu", "h100-80gb", "--gpu", "l40s", "--price", "2"]
    assert cli.main([*words, f"--json={tmp_path / 'plan.json'}"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for shown in (
        "ZeRO-3 on 2 x",
        "all of them trained",
        "fits,",
        "l40s",
        "largest, checkpointing",
        "cost of 1 epoch",
        "30%",
    ):
        assert shown in text
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert 0 < plan["pairs"] <= len(golden["rows"]) and "tokenised" in plan["assumptions"][0]
    h100, l40s = plan["gpus"]
    slow = [gpu["times"]["communication"] > gpu["times"]["compute"] for gpu in (h100, l40s)]
    told = [any(f"{name}: transfers between" in line for line in plan["assumptions"]) for name in ("h100-80gb", "l40s")]
    assert told == slow and slow == [True, True]
    assert h100["fits"] and h100["memory"]["total"] == pytest.approx(
        sum(value for key, value in h100["memory"].items() if key != "total")
    )
    assert h100["memory"] == l40s["memory"] and h100["times"]["step"] < l40s["times"]["step"]
    hours = h100["times"]["epoch"] / 3600
    assert h100["cost"] == pytest.approx(hours * 2 * 2)


def test_a_plan_without_data_says_so(config: Path, capsys: Any) -> None:
    assert cli.main(["plan", str(config), "--gpus=1", "--dataset_mixer={nowhere.jsonl: 1.0}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "the data were not read" in text and "172,331,312 tokens; 60,000 pairs assumed" in text
    assert "transfers between" not in text  # one GPU


def test_what_does_not_fit_comes_with_changes(config: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "plan.json"
    small_gpu = ["--gpu", "mine", "--memory=1.45", "--tflops=10", "--bandwidth=100"]
    assert cli.main(["plan", str(config), "--gpus=1", *small_gpu, "--json", str(out), "--mean-tokens=50,60,70"]) == 0
    (gpu,) = json.loads(out.read_text())["gpus"]
    assert not gpu["fits"] and gpu["largest_micro_batch"] == {"activations_kept": None, "checkpointing": None}
    assert gpu["changes"] == []  # CUDA alone takes more
    assert "nothing that was tried" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--gpu", "h900"], "--gpu h900: not in the table; write one of h100-80gb, a100-80gb, h200"),
        (["--memory=0"], "--memory 0 must be a number above 0"),
        (["--memory=inf"], "--memory inf must be a number above 0"),
        (["--gpu=l40s", "--gpu=h200", "--memory=40"], "figures of one GPU"),
        (["--price=-1"], "--price -1 must be a number, 0 or more"),
        (["--price=nan"], "--price nan must be a number, 0 or more"),
        (["--json=."], "--json .: is a folder; name a file in it, say plan.json"),
        (["--pairs=0"], "--pairs 0 must be 1 or more"),
        (
            ["--accelerate=zero3"],
            "simpo plan calls it --launch-config",
        ),
        (["--engine=zero1"], "--engine zero1: unknown; write one of single, ddp"),
        (["--engine=single", "--gpus=2"], "--engine single uses one GPU, not 2"),
        (["--engine=ddp", "--launch-config=zero3"], "both name an engine"),
        (["--gpus=0"], "--gpus 0 must be 1 or more"),
        (["--gpus=16"], "total_train_batch_size: 8 is below the 16 GPUs"),
        (["--launch-config=nowhere.yaml"], "--launch-config nowhere.yaml: no such file or name"),
        (["--launch-config=training_configs/demo.yaml"], "demo.yaml: is no accelerate configuration"),
        (["--utilisation=1.5"], "--utilisation 1.5 must be above 0 and at most 1"),
        (["--mean-tokens=900,900,900"], "at most max_length: 1024"),
        (["--model_name_or_path="], "model_name_or_path is missing"),
        (["--model_name_or_path=nobody/nothing"], "of which config.json is enough"),
    ],
)
def test_what_is_wrong(config: Path, words: list[str], error: str, capsys: Any) -> None:
    assert cli.main(["plan", str(config), *words]) == 2
    assert error in capsys.readouterr().err


def test_mean_tokens_are_three_numbers(config: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["plan", str(config), "--mean-tokens=512"])
    assert "write e.g. --mean-tokens 172,331,312" in capsys.readouterr().err


def test_the_table_of_gpus() -> None:
    assert list(gpu_table()) == ["h100-80gb", "a100-80gb", "h200", "b200", "l40s", "rtx4090", "cpu"]
    for name, row in gpu_table().items():
        gpu = find_gpu(name)
        assert row["source"] and min(gpu.memory, gpu.flops, gpu.bandwidth, gpu.link) > 0
        assert gpu.cuda == (name != "cpu")
    custom = find_gpu("H100-80gb", memory=40, tflops=500, bandwidth=1000)
    assert (custom.memory, custom.flops, custom.bandwidth) == (40 * 2**30, 500e12, 1000e9)


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("zero2", Engine("zero2", 8)), ("zero3", Engine("zero3", 8)), ("zero3_nodes", Engine("zero3", 16)),
        ("fsdp2", Engine("fsdp2", 8)), ("multi_gpu", Engine("ddp", 8)), ("single_gpu", Engine("single", 1)),
    ],
)  # fmt: skip
def test_engines_of_the_launch_configurations(name: str, engine: Engine) -> None:
    assert name in LAUNCH_CONFIGS and launched_engine(launch_config(name)) == engine


def test_engines_of_other_configurations(tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    zero = {"zero_stage": 3, "offload_optimizer_device": "cpu", "offload_param_device": "none"}
    file.write_text(yaml.safe_dump({"distributed_type": "DEEPSPEED", "deepspeed_config": zero, "num_processes": 4}))
    assert launched_engine(file) == Engine("zero3", 4, offload_optimizer=True)
    assert launched_engine(file, 2).gpus == 2
    file.write_text(yaml.safe_dump({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}))
    with pytest.raises(ConfigError, match="fsdp_version: 2"):
        launched_engine(file)
    file.write_text(yaml.safe_dump({"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 1}}))
    with pytest.raises(ConfigError, match="stages 2 and 3"):
        launched_engine(file)
    assert named_engine(None, 1).kind == "single" and named_engine(None, 2).kind == "zero3"


@pytest.mark.parametrize(("given", "bucket"), [({}, 500_000_000), ({"reduce_bucket_size": 2e8}, 200_000_000),
                                               ({"reduce_bucket_size": "auto"}, None)])  # fmt: skip
def test_the_bucket_of_a_deepspeed_file(tmp_path: Path, given: dict[str, Any], bucket: int | None) -> None:
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 3, **given}}))
    options = {"deepspeed_config_file": str(tmp_path / "zero.json")}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"distributed_type": "DEEPSPEED", "deepspeed_config": options}))
    assert launched_engine(tmp_path / "a.yaml", 2) == Engine("zero3", 2, bucket=bucket)


@pytest.mark.parametrize("zero", [{"reduce_bucket_size": "5e8"}, {"reduce_bucket_size": 500_000_000.0},
                                  {"reduce_bucket_size": "500000000"}, {"offload_optimizer": None}])  # fmt: skip
def test_numbers_of_a_deepspeed_file_as_people_write_them(tmp_path: Path, zero: dict[str, Any]) -> None:
    assert launched_engine(_deepspeed(tmp_path, {"zero_optimization": {"stage": 3, **zero}}), 2) == Engine("zero3", 2)


@pytest.mark.parametrize("content", [[], {"zero_optimization": 3}, {"zero_optimization": {"stage": 3,
                                     "reduce_bucket_size": "large"}}, {"zero_optimization": None}])  # fmt: skip
def test_what_is_wrong_in_a_deepspeed_file(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ConfigError, match=r"zero\.json|zero_stage"):
        launched_engine(_deepspeed(tmp_path, content), 2)


def _deepspeed(folder: Path, content: Any) -> Path:
    (folder / "zero.json").write_text(json.dumps(content))
    options = {"deepspeed_config_file": str(folder / "zero.json")}
    (folder / "a.yaml").write_text(yaml.safe_dump({"distributed_type": "DEEPSPEED", "deepspeed_config": options}))
    return folder / "a.yaml"


def test_no_is_a_word_in_an_accelerate_configuration(tmp_path: Path) -> None:
    """Without quotes YAML reads it as false, and accelerate starts one process all the same."""
    (tmp_path / "a.yaml").write_text("distributed_type: NO\nnum_processes: 1\n")
    assert launched_engine(tmp_path / "a.yaml") == Engine("single", 1)


def test_arithmetic_is_that_of_the_method() -> None:
    """Beside the head's tiles, which are computed twice, and layers, where activations are."""
    case = Case(llama_8b(), Engine("zero3", 8), (PAIR,))
    shape = model_shape(case.config)
    method = training_flops(shape, [PAIR] * 128, shared=True)
    head = 2 * shape.hidden * shape.vocabulary * (PAIR.chosen + PAIR.rejected) * 128
    assert step_flops(case, PAIR, 128) == pytest.approx(method + head)
    layers = (method - 3 * head) / 3
    assert step_flops(case.changed(checkpointing=True), PAIR, 128) == pytest.approx(method + head + layers)
    assert step_flops(case.changed(adapter=lora()), PAIR, 128) == pytest.approx(2 * layers + 3 * head)


def test_seconds_of_a_step() -> None:
    case = Case(llama_8b(), Engine("zero3", 8), (PAIR,))
    workload = Workload(np.array([PAIR]), 1280, "", assumed=True)
    cut = workload.plan(Budget(4), per_step=128, gpus=8, shared=True)
    gpu = find_gpu("h100-80gb")
    times = times_of(case, gpu, PAIR, cut, per_step=128, pairs=1280, utilisation=0.3)
    assert cut.micro_batches / cut.steps == 4 and cut.imbalance == 1
    assert times.compute == pytest.approx(step_flops(case, PAIR, 128) / (8 * 0.3 * 989e12))
    n = case.sizes.total
    assert times.communication == pytest.approx(4 * (7 / 8) * 6 * n / gpu.link)  # twice weights, once gradients
    assert times.update == pytest.approx(28 * n / 8 / gpu.bandwidth)
    assert times.step == max(times.compute, times.communication) + times.update
    assert times.epoch == pytest.approx(10 * times.step)
    assert times.tokens_per_second == pytest.approx(128 * sum(PAIR) / times.step)
    far = times_of(case.changed(engine=Engine("zero3", 16)), gpu, PAIR, cut, per_step=128, pairs=1, utilisation=0.3)
    assert far.communication > 5 * times.communication  # over the network


def test_the_largest_micro_batch_fits_and_a_larger_one_does_not() -> None:
    case = Case(small(), Engine("single", 1), (PAIR,), accumulated=False)
    workload = Workload(np.array([PAIR]), 1, "", assumed=True)

    def fill(tokens: int) -> Any:
        return workload.micro_batch(tokens, shared=True)

    capacity = memory_of(case.changed(pairs=fill(20_000))).total
    found = largest_micro_batch(case, capacity, sum(PAIR), 100_000, fill)
    assert found.limited and found.tokens is not None and 19_000 < found.tokens <= 20_000
    assert largest_micro_batch(case, capacity, sum(PAIR), 5000, fill) == (5000, False)
    assert largest_micro_batch(case, capacity / 4, sum(PAIR), 5000, fill).tokens is None


def test_a_micro_batch_fits_where_memory_grows_with_the_square_of_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """As SDPA's masks in float32: what a micro-batch needs rises and falls with the length of its last pair."""
    workload = Workload(np.array([PAIR]), 1, "", assumed=True)

    def needed(case: Case) -> Memory:
        last = sum(case.pairs[-1])
        return Memory({"all": 1000.0 * case.tokens + float(last**2)}, "", 0.0)

    for module in (plan, changes):
        monkeypatch.setattr(module, "memory_of", needed)
    case = Case(small(), Engine("single", 1), (PAIR,))

    def fill(tokens: int) -> Any:
        return workload.micro_batch(tokens, shared=True)

    for capacity in range(1_500_000, 20_000_000, 250_000):
        found = largest_micro_batch(case, capacity, 815, 20_000, fill).tokens
        assert found is not None and needed(case.changed(pairs=fill(found))).total <= capacity


def test_a_micro_batch_has_the_tokens_asked_for() -> None:
    workload = Workload(np.array([PAIR]), 1, "", assumed=True)
    for shared, tokens in ((True, 5000), (False, 5000), (True, 815)):
        pairs = workload.micro_batch(tokens, shared=shared)
        assert sum((1 if shared else 2) * p + c + r for p, c, r in pairs) == tokens


def test_assumed_lengths_keep_the_bounds(make_args: Any) -> None:
    args = make_args(max_length=1024, max_prompt_length=512)
    workload = assumed_workload(args, PAIR, None, "given")
    prompt, chosen, rejected = workload.lengths.T
    assert prompt.max() <= 512 and (prompt + np.maximum(chosen, rejected)).max() <= 1024
    assert workload.mean == pytest.approx(PAIR, rel=0.1) and workload.pairs == 60_000


def test_experts_are_planned_without_time_where_their_kernels_allow(config: Path) -> None:
    from transformers import Qwen3MoeConfig

    from simpo.settings import read_settings

    shape = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
    experts = {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    workload = Workload(np.array([PAIR]), 100, "", assumed=True)
    settings = read_settings(config, ["--use_cpu=true"])
    run = Run(Qwen3MoeConfig(**shape, **experts), None, settings, Engine("zero3", 2), workload)
    plan = plan_run(run, find_gpu("h200"))
    assert plan.times is None and "experts" in str(plan.untimed) and plan.fits
    with pytest.raises(ModelError, match="a step of qwen3_moe cannot be counted without data"):
        plan_run(dataclasses.replace(run, engine=Engine("single", 1)), find_gpu("h200"))
