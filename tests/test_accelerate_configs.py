"""Every accelerate configuration is read by `accelerate launch` as it is meant, with the engine it names."""

import contextlib
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from accelerate.utils.other import get_free_port

CONFIGS = Path(__file__).parents[1] / "accelerate_configs"
DEEPSPEED = {"deepspeed_zero2": 2, "deepspeed_zero3": 3, "deepspeed_zero3_nodes": 3}
ENGINES = {
    "single_gpu": DistributedType.NO,
    "cpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "fsdp2_nodes": DistributedType.FSDP,
    **dict.fromkeys(DEEPSPEED, DistributedType.DEEPSPEED),
}
SCRIPT = ["scripts/run_simpo.py", "training_configs/llama-3-8b-instruct-simpo-v2.yaml"]


def path_of(name: str) -> str:
    return str(CONFIGS / f"{name}.yaml")


def launch_args(name: str, *options: str) -> Namespace:
    """What `accelerate launch --config_file NAME OPTIONS script config` makes of its command line."""
    # a free port: the launcher refuses one in use, and other tests may use the usual one
    port = ["--main_process_port", str(get_free_port())]
    args, config, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", path_of(name), *port, *options, *SCRIPT])
    )
    args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)  # as launch_command does
    return args


@contextlib.contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> Iterator[None]:
    """The launched process's environment, for as long as its plugins are built here."""
    with monkeypatch.context() as patch:
        for key, value in values.items():
            if key.startswith(("ACCELERATE_", "FSDP_")):
                patch.setenv(key, value)
        yield


def test_every_file_is_listed() -> None:
    assert {path.stem for path in CONFIGS.glob("*")} == set(ENGINES)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(path_of(name))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == ENGINES[name]
    assert config.mixed_precision == ("no" if name == "cpu" else "bf16")
    assert config.use_cpu == (name == "cpu")
    assert config.num_processes == {"single_gpu": 1, "cpu": 1, "deepspeed_zero3_nodes": 16, "fsdp2_nodes": 16}.get(
        name, 8
    )


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_engine_key_is_an_option_of_the_launcher(name: str) -> None:
    # accelerate copies unknown keys of these sections without a word, so a misspelt one would just do nothing
    raw = yaml.safe_load(Path(path_of(name)).read_text())
    options = vars(launch_command_parser().parse_args(SCRIPT))
    keys = [key for section in ("deepspeed_config", "fsdp_config") for key in raw.get(section, {})]
    assert [key for key in keys if key not in options] == []


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_launcher_accepts_it(name: str) -> None:
    args = launch_args(name)
    assert args.use_deepspeed == (name in DEEPSPEED)
    assert args.use_fsdp == name.startswith("fsdp2")
    assert args.multi_gpu == (name == "multi_gpu")
    assert [args.training_script, *args.training_script_args] == SCRIPT


@pytest.mark.parametrize("name", sorted(set(ENGINES) - {"single_gpu", "cpu"}))
def test_process_count_is_overridden_on_the_command_line(name: str) -> None:
    assert launch_args(name, "--num_processes", "4").num_processes == 4


@pytest.mark.parametrize(("name", "stage"), DEEPSPEED.items())
def test_deepspeed_plugin(name: str, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    from accelerate.utils import DeepSpeedPlugin
    from transformers.integrations import is_deepspeed_zero3_enabled

    _, env = prepare_deepspeed_cmd_env(launch_args(name))
    assert env["ACCELERATE_MIXED_PRECISION"] == "bf16"
    with environment(monkeypatch, env):
        plugin = DeepSpeedPlugin()
    engine: dict[str, Any] = plugin.deepspeed_config
    assert engine["zero_optimization"]["stage"] == stage
    assert engine["zero_optimization"]["offload_optimizer"]["device"] == "none"
    assert engine["gradient_accumulation_steps"] == 1  # the trainer accumulates
    assert engine.get("gradient_clipping", "auto") == "auto"  # taken from max_grad_norm
    assert plugin.zero3_init_flag == (stage == 3)
    assert bool(engine["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save")) == (stage == 3)
    del plugin, engine
    assert not is_deepspeed_zero3_enabled()  # nothing is left for the tests that follow


@pytest.mark.parametrize("name", ["deepspeed_zero3", "fsdp2"])
def test_many_nodes_differ_from_one_in_nodes_only(name: str) -> None:
    one, many = (yaml.safe_load(Path(path_of(each)).read_text()) for each in (name, f"{name}_nodes"))
    own = {"num_machines", "num_processes", "main_process_ip", "main_process_port"}
    assert {key: value for key, value in many.items() if key not in own | {"deepspeed_config"}} == {
        key: value for key, value in one.items() if key not in own | {"deepspeed_config"}
    }
    more = {"deepspeed_multinode_launcher": "standard"} if "deepspeed_config" in one else {}
    assert many.get("deepspeed_config", {}) == one.get("deepspeed_config", {}) | more
    args = launch_args(f"{name}_nodes", "--num_machines", "4", "--num_processes", "32", "--machine_rank", "3")
    assert (args.num_machines, args.num_processes, args.machine_rank) == (4, 32, 3)


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["deepspeed_zero3_nodes", "fsdp2_nodes"])
def test_two_nodes_form_one_run(tmp_path: Path, name: str) -> None:
    script = tmp_path / "who.py"
    script.write_text("import os\nprint('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])\n")
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", path_of(name), "--main_process_ip", "127.0.0.1"]
    command += ["--main_process_port", str(get_free_port()), "--num_processes", "2"]  # one a machine
    machines = [
        subprocess.Popen([*command, "--machine_rank", rank, str(script)], stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        said = [machine.communicate(timeout=300)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0]
    assert ["rank 0 of 2" in said[0], "rank 1 of 2" in said[1]] == [True, True]


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_nodes"])
def test_fsdp2_plugin(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with environment(monkeypatch, prepare_multi_gpu_env(launch_args(name))):
        plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert plugin.cpu_ram_efficient_loading
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy"  # torch's name for keeping everything on the device
    assert not plugin.activation_checkpointing  # the trainer's own; transformers refuses both at once
    assert getattr(plugin.auto_wrap_policy, "__name__", "") == "transformer_auto_wrap_policy"


def test_ddp_environment() -> None:
    args = launch_args("multi_gpu")
    env = prepare_multi_gpu_env(args)
    assert args.nproc_per_node == "8"
    assert env["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert "ACCELERATE_USE_FSDP" not in env
    assert "ACCELERATE_USE_DEEPSPEED" not in env


@pytest.mark.parametrize("name", ["cpu", "single_gpu"])
def test_one_process_environment(name: str) -> None:
    command, env = prepare_simple_launcher_cmd_env(launch_args(name))
    assert command[-2:] == SCRIPT
    assert env["ACCELERATE_USE_CPU"].lower() == str(name == "cpu").lower()
    assert env["ACCELERATE_MIXED_PRECISION"] == ("no" if name == "cpu" else "bf16")
