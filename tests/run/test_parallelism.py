"""What cuts a sequence over devices is refused with what to use instead."""

import pytest
from accelerate import ParallelismConfig
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_extend_env_parallelism_config

from simpo.errors import ConfigError
from simpo.run.parallelism import check_parallelism


@pytest.mark.parametrize(("key", "kind"), [("cp_size", "context"), ("tp_size", "tensor"), ("sp_size", "sequence")])
def test_accelerates_own_configuration(make_args, key: str, kind: str) -> None:
    args = make_args()
    check_parallelism(args)
    args.parallelism_config = ParallelismConfig(**{key: 2})
    with pytest.raises(ConfigError, match=rf"{key} 2: {kind} parallelism is not supported.*max_tokens_per_microbatch"):
        check_parallelism(args)


def test_what_only_shards_or_repeats_is_served(make_args) -> None:
    args = make_args()
    args.parallelism_config = ParallelismConfig(dp_replicate_size=2, dp_shard_size=4)
    check_parallelism(args)


@pytest.mark.parametrize("key", ["cp", "tp", "sp"])
def test_what_the_launcher_says(make_args, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    words = ["--use_parallelism_config", f"--parallelism_config_{key}_size", "2"]
    env = prepare_extend_env_parallelism_config(launch_command_parser().parse_args([*words, "any.py"]), {})
    args = make_args()
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"parallelism_config_{key}_size of the launcher 2: .* not supported"):
        check_parallelism(args)
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "false")
    check_parallelism(args)
