"""Weights are safetensors or nothing, and code that comes with a model runs only where the settings say so."""

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from simpo import SimPOConfig, cli
from simpo.engines.transformers_engine import load_transformers_engine
from simpo.engines.vllm_engine import VllmEngine
from simpo.errors import ConfigError, ModelError
from simpo.evals.pairs.packed_scores import load_scored_model
from simpo.model import build_policy, load_causal_lm, load_model_config, load_tokenizer
from simpo.onpolicy.annotators.loading import load_scorer
from simpo.run import run_training
from simpo.run.sft.settings import read_sft_settings
from simpo.settings import read_settings
from simpo.weights import check_weights

CPU = torch.device("cpu")
LOADERS: dict[str, Callable[[str], Any]] = {
    "training": lambda name: load_causal_lm(name, dtype=torch.float32),
    "sampling": lambda name: load_transformers_engine(name, batch_size=1, device="cpu"),
    "vllm": VllmEngine,
    "pairs": lambda name: load_scored_model(name, dtype=torch.float32, device=CPU),
    "scoring": lambda name: load_scorer(LlamaForSequenceClassification, name, CPU, "auto", None, example="x"),
}


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM that would load anything."""

    class Anything:
        LLM = SamplingParams = staticmethod(lambda **_: None)

    monkeypatch.setitem(sys.modules, "vllm", Anything)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"])
def test_a_model_of_pickles_is_refused_with_the_way_out(name: str, marker, spoilt) -> None:
    folder = spoilt("model.safetensors")
    marker.torch_file(folder / name)
    for loader in LOADERS.values():
        with pytest.raises(ModelError, match=rf"its weights are pickles, {re.escape(name)}; only safetensors are read"):
            loader(str(folder))
    assert not marker.touched


def test_transformers_is_told_too(spoilt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub name's files are not seen before they are loaded."""
    folder = spoilt("model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    for module in ("model", "engines.transformers_engine", "evals.pairs.packed_scores", "onpolicy.annotators.loading"):
        monkeypatch.setattr(f"simpo.{module}.check_weights", lambda *_, **__: None)
    for name, loader in LOADERS.items():
        if name == "vllm":
            continue
        with pytest.raises(ModelError, match=r"no file named model\.safetensors.*convert them once"):
            loader(str(folder))


def test_vllm_reads_safetensors_only(tiny_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(sys.modules["vllm"], "LLM", lambda **options: given.update(options))
    VllmEngine(tiny_dir)
    assert given["load_format"] == "safetensors" and given["trust_remote_code"] is False


def test_a_config_cannot_name_a_pickle(marker, spoilt) -> None:
    folder = spoilt()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "adapter_model.bin"}))
    marker.torch_file(folder / "adapter_model.bin")
    for loader in LOADERS.values():
        with pytest.raises(ModelError, match=r"its weights are pickles, adapter_model\.bin"):
            loader(str(folder))
    assert not marker.touched


def test_an_adapter_of_pickles_is_refused(marker, tiny_dir: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": tiny_dir, "r": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for file in Path(tiny_dir).glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    marker.torch_file(folder / "adapter_model.bin")
    for name in ("sampling", "pairs"):
        with pytest.raises(ModelError, match=r"its weights are a pickle, adapter_model\.bin; .*convert it once"):
            LOADERS[name](str(folder))
    assert not marker.touched


def test_an_adapter_on_the_hub_is_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "transformers.utils.peft_utils.find_adapter_config_file", lambda *_, **__: "adapter_config.json"
    )
    found: list[str | None] = [None, "adapter_model.safetensors"]
    monkeypatch.setattr("transformers.utils.hub.cached_file", lambda *_, **__: found.pop(0))
    with pytest.raises(ModelError, match="org/adapter: its adapter is no safetensors file"):
        check_weights("org/adapter")
    check_weights("org/adapter")


def test_the_commands_that_convert_work(tiny_dir: str, spoilt, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = spoilt("model.safetensors")
    weights = AutoModelForCausalLM.from_pretrained(tiny_dir).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    torch.save({"x": torch.ones(2)}, adapter / "adapter_model.bin")
    for refused in (folder, adapter):
        with pytest.raises(ModelError) as caught:
            check_weights(str(refused))
        command = re.search(r'python -c ".*?"(?=, and|$)', str(caught.value))
        assert command
        exec(shlex.split(command[0])[2])  # as `python -c` would, which imports torch first
    check_weights(str(tmp_path / "converted"))
    converted = load_file(tmp_path / "converted" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in converted.items())
    assert load_file(adapter / "adapter_model.safetensors")["x"].tolist() == [1, 1]


@pytest.mark.parametrize("option", ["use_safetensors", "weights_only"])
def test_options_cannot_ask_for_pickles(option: str, tiny_dir: str) -> None:
    with pytest.raises(ModelError, match=f"{option}: False would read pickles"):
        build_policy(tiny_dir, bf16=False, fp16=False, deepspeed=False, model_init_kwargs={option: False})


# --- code that comes with a model ---------------------------------------------------------------------------------


@pytest.fixture
def with_code(marker, spoilt) -> Path:
    """A model whose config, weights and tokenizer name code of their own, which touches the marker."""
    folder = spoilt()
    body = marker.code + (
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Own(LlamaConfig): model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM): config_class = Own\n"
        "class OwnTokenizer(PreTrainedTokenizerFast): pass\n"
    )
    (folder / "own.py").write_text(body)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}, "tokenizer_class": "OwnTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_code_of_a_model_is_not_run_unasked(with_code: Path, marker) -> None:
    for loader in (*LOADERS.values(), load_model_config):
        if loader is not LOADERS["vllm"]:
            with pytest.raises(ModelError):
                loader(str(with_code))
    with contextlib.suppress(ModelError):  # a fast tokenizer needs no code of its own
        load_tokenizer(str(with_code))
    assert not marker.touched


def test_code_of_a_model_is_run_where_the_settings_say_so_and_then_told(
    with_code: Path, marker, make_config, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_config(model_name_or_path=str(with_code))
    assert cli.main(["train", str(path), "--dry-run"]) == 2
    assert not marker.touched and "trust_remote_code" in capsys.readouterr().err
    run_training(read_settings(path, ["--trust_remote_code=true"]), dry_run=True)
    assert marker.touched
    assert f"trust_remote_code: running Python code that comes with {with_code}" in capsys.readouterr().out


def test_the_plan_says_that_code_is_run(make_config, capsys: pytest.CaptureFixture[str]) -> None:
    run_training(read_settings(make_config(), ["--trust_remote_code=true"]), dry_run=True)
    assert "  code       trust_remote_code: running Python code that comes with" in capsys.readouterr().out
    run_training(read_settings(make_config()), dry_run=True)
    assert "trust_remote_code" not in capsys.readouterr().out


@pytest.mark.parametrize("read", [read_settings, read_sft_settings])
def test_code_is_not_asked_for_by_the_way(read: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: m\ndataset_mixer: {d: 1.0}\nmodel_init_kwargs: {trust_remote_code: true}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:3: model_init_kwargs: trust_remote_code has a setting"):
        read(path)
    assert SimPOConfig(output_dir="x", use_cpu=True, bf16=False).model_init_kwargs in (None, {})
