"""Every training configuration parses, and the published ones hold the published values."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from simpo.objectives import OBJECTIVES
from simpo.onpolicy.recipe import read_recipe
from simpo.run.manifest import write_settings
from simpo.settings import read_settings

CONFIGS = Path(__file__).parents[1] / "training_configs"
ULTRAFEEDBACK = "HuggingFaceH4/ultrafeedback_binarized"
LLAMA3_INSTRUCT = "meta-llama/Meta-Llama-3-8B-Instruct"

# file: model, data, splits, beta, gamma / beta, learning rate, max_length, max_prompt_length, attention
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "mistral-7b-base-simpo": (
        *("alignment-handbook/zephyr-7b-sft-full", ULTRAFEEDBACK, ["train_prefs", "test_prefs"]),
        *(2.0, 0.8, 3e-7, 1024, 512, "flash_attention_2"),
    ),
    "mistral-7b-instruct-simpo": (
        *("mistralai/Mistral-7B-Instruct-v0.2", "princeton-nlp/mistral-instruct-ultrafeedback", ["train", "test"]),
        *(2.5, 0.1, 5e-7, 2048, 1800, "flash_attention_2"),
    ),
    "llama-3-8b-base-simpo": (
        *("princeton-nlp/Llama-3-Base-8B-SFT", ULTRAFEEDBACK, ["train_prefs", "test_prefs"]),
        *(2.0, 0.5, 6e-7, 2048, 1800, "flash_attention_2"),
    ),
    "llama-3-8b-instruct-simpo": (
        *(LLAMA3_INSTRUCT, "princeton-nlp/llama3-ultrafeedback", ["train", "test"]),
        *(2.5, 0.55, 1e-6, 2048, 1800, "flash_attention_2"),
    ),
    "llama-3-8b-instruct-simpo-v2": (
        *(LLAMA3_INSTRUCT, "princeton-nlp/llama3-ultrafeedback-armorm", ["train", "test"]),
        *(10.0, 0.3, 1e-6, 2048, 1800, "flash_attention_2"),
    ),
    "gemma-2-9b-it-simpo": (
        *("google/gemma-2-9b-it", "princeton-nlp/gemma2-ultrafeedback-armorm", ["train", "test"]),
        *(10.0, 0.5, 8e-7, 2048, 1800, "eager"),
    ),
}
SHIPPED = {
    *PUBLISHED,
    "llama-3-8b-instruct-lora-80gb",
    "llama-3-8b-instruct-qlora-24gb",
    "your-own-data",
    "demo",
}

# file of training_configs/objectives: its objective, and what it sets; the rest is the setting's.
COMPOSABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "simpo": ("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.5}),
    "dpo": ("dpo", {"beta": 0.01}),
    "ipo": ("ipo", {"tau": 0.1}),
    "kto": ("kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
    "r-dpo": ("r-dpo", {"beta": 0.1, "length_penalty": 0.05}),
    "cpo": ("cpo", {"beta": 0.1, "nll_weight": 1.0}),
    "orpo": ("orpo", {"odds_weight": 0.1}),
    "rrhf": ("rrhf", {"nll_weight": 1.0}),
    "slic-hf": ("slic-hf", {"delta": 1.0, "nll_weight": 1.0}),
    "alphapo": ("alphapo", {"beta": 2.5, "gamma_beta_ratio": 0.1, "alpha": 0.25}),
    "simpo-no-length-normalization": ("simpo", {"length_normalization": False}),
    "simpo-gamma-0": ("simpo", {"gamma_beta_ratio": 0.0}),
    "simpo-sft": ("simpo", {"sft_weight": 0.1}),
    "dpo-length-normalization": ("dpo", {"length_normalization": True, "beta": 2.0}),
    "dpo-margin": ("dpo", {"beta": 0.01, "gamma_beta_ratio": 10.0}),
}
# setting: its row of recipes.csv, DPO's beta and learning rate
PUBLISHED_DPO = {
    "mistral-7b-base": ("mistral-7b-base-simpo", 0.01, 5e-7),
    "mistral-7b-instruct": ("mistral-7b-instruct-simpo", 0.01, 5e-7),
    "llama-3-8b-base": ("llama-3-8b-base-simpo", 0.01, 5e-7),
    "llama-3-8b-instruct": ("llama-3-8b-instruct-simpo", 0.01, 7e-7),
    "llama-3-8b-instruct-v2": ("llama-3-8b-instruct-simpo-v2", 0.01, 3e-7),
    "gemma-2-9b-it": ("gemma-2-9b-it-simpo", 0.01, 5e-7),
}
PUBLISHED_CSV = Path(__file__).parents[2] / "shared" / "facts" / "recipes.csv"


def read(name: str, *overrides: str) -> Any:
    return read_settings(CONFIGS / f"{name}.yaml", ["--use_cpu=true", *overrides])


def test_every_file_is_listed() -> None:
    assert {path.stem for path in CONFIGS.glob("*")} == {*SHIPPED, "objectives", "onpolicy", "sft", "sweeps"}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_validates_without_old_names(name: str) -> None:
    run = read(name)
    assert run.model.model_name_or_path
    assert run.data.dataset_mixer
    # the checkpointing keys' name depends on the version of transformers; the attention is the published preference
    expected = ("gradient_checkpointing", "attn_implementation")
    assert [line for line in run.conversions if not line.startswith(expected)] == []


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_outputs_do_not_collide(name: str) -> None:
    raw = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    others = [yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml") if path.stem != name]
    assert raw["output_dir"].startswith("outputs/")
    assert raw["output_dir"] not in [other["output_dir"] for other in others]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_setting(name: str) -> None:
    run = read(name)
    model, source, splits, beta, ratio, rate, length, prompt_length, attention = PUBLISHED[name]
    assert run.model.model_name_or_path == model
    assert run.model.attn_implementation == attention
    assert run.data.dataset_mixer == {source: 1.0}
    assert run.data.dataset_splits == splits
    args = run.training
    assert (args.beta, args.gamma_beta_ratio, args.learning_rate) == (beta, ratio, rate)
    assert args.gamma == pytest.approx(beta * ratio)
    assert (args.max_length, args.max_prompt_length) == (length, prompt_length)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_what_the_published_settings_share(name: str) -> None:
    run = read(name)
    args = run.training
    assert args.tokenization == "paper"
    assert args.total_train_batch_size == 128
    assert args.micro_batches_per_step == 64
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size) == (2, 4)
    assert args.gradient_accumulation_steps == 1
    assert (args.loss_type, args.sft_weight, args.label_smoothing) == ("sigmoid", 0.0, 0.0)
    assert (args.num_train_epochs, args.optim, args.seed) == (1, "adamw_torch", 42)
    assert (args.lr_scheduler_type, args.warmup_steps) == ("cosine", 0.1)
    assert (args.weight_decay, args.max_grad_norm) == (0.0, 1.0)
    assert args.bf16
    assert args.gradient_checkpointing
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert (args.eval_strategy, args.eval_steps, args.logging_steps) == ("steps", 400, 5)
    assert not run.model.use_peft
    assert run.model.dtype is None


def test_templates_and_system_turns_of_the_published_settings() -> None:
    templates = {name: read(name).data.chat_template for name in PUBLISHED}
    assert {name: value for name, value in templates.items() if value} == {
        "mistral-7b-instruct-simpo": "mistral",
        "gemma-2-9b-it-simpo": "gemma-2",
    }
    # the empty system turn shows only in the template of zephyr-7b-sft-full
    assert [name for name in PUBLISHED if read(name).training.add_empty_system] == ["mistral-7b-base-simpo"]


@pytest.mark.parametrize("name", ["llama-3-8b-instruct-lora-80gb", "llama-3-8b-instruct-qlora-24gb"])
def test_adapters(name: str) -> None:
    run = read(name)
    assert run.model.use_peft
    assert run.model.load_in_4bit == ("qlora" in name)
    assert run.training.total_train_batch_size == 128
    assert run.training.tokenization == "standard"
    peft_config = run.model.peft_config()
    assert peft_config.target_modules == "all-linear"
    assert peft_config.task_type == "CAUSAL_LM"


def test_the_batch_stays_on_any_micro_batch() -> None:
    run = read("llama-3-8b-instruct-simpo-v2", "--per_device_train_batch_size=4")
    assert run.training.total_train_batch_size == 128
    assert run.training.micro_batches_per_step == 32


def compose(setting: str, objective: str, *overrides: str) -> Any:
    files = [CONFIGS / f"{setting}.yaml", CONFIGS / "objectives" / f"{objective}.yaml"]
    return read_settings(files, ["--use_cpu=true", *overrides])


def test_every_objective_has_a_file() -> None:
    found = {path.stem for path in (CONFIGS / "objectives").glob("*")}
    assert found == {*COMPOSABLE, *(f"dpo-{name}" for name in PUBLISHED_DPO)}
    assert set(OBJECTIVES) <= set(COMPOSABLE)


@pytest.mark.parametrize("name", sorted(COMPOSABLE))
@pytest.mark.parametrize("setting", sorted(SHIPPED))
def test_an_objective_behind_a_setting(setting: str, name: str) -> None:
    alone, both = read(setting), compose(setting, name)
    objective, values = COMPOSABLE[name]
    args = both.training
    assert args.objective == objective
    assert {key: getattr(args, key) for key in values} == values
    kept = alone.training.objective_settings if objective == "simpo" else OBJECTIVES[objective].knobs
    assert args.objective_settings == kept | {key: values[key] for key in values if key in kept}
    for key in ("learning_rate", "max_length", "max_prompt_length", "tokenization", "total_train_batch_size", "seed"):
        assert getattr(args, key) == getattr(alone.training, key)
    assert (both.model, both.data) == (alone.model, alone.data)
    assert args.output_dir == f"{alone.training.output_dir}-{name}"
    assert args.run_name == f"{alone.training.run_name}-{name}"


@pytest.mark.parametrize("name", sorted(PUBLISHED_DPO))
def test_published_dpo(name: str) -> None:
    setting, beta, rate = PUBLISHED_DPO[name]
    run = compose(setting, f"dpo-{name}")
    args = run.training
    assert (args.objective, args.beta, args.learning_rate) == ("dpo", beta, rate)
    assert (args.gamma, args.length_normalization, args.label_smoothing) == (0.0, False, 0.0)
    assert (args.output_dir, args.run_name) == (f"outputs/{name}-dpo", f"{name}-dpo")
    assert run.data == read(setting).data and run.model == read(setting).model


def test_published_dpo_is_what_was_published() -> None:
    if not PUBLISHED_CSV.exists():
        pytest.skip("the table of published values lies beside the project, in ../shared/facts, and is not there")
    rows = list(csv.DictReader(PUBLISHED_CSV.open()))
    table = {Path(row["recipe_file"]).stem: (float(row["dpo_beta"]), float(row["dpo_learning_rate"])) for row in rows}
    assert table == {setting: (beta, rate) for setting, beta, rate in PUBLISHED_DPO.values()}


def test_a_folder_that_is_named_later_wins() -> None:
    assert compose("llama-3-8b-base-simpo", "ipo", "--output_dir=outputs/mine").training.output_dir == "outputs/mine"


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_kept_settings_read_back(name: str, tmp_path: Path) -> None:
    run = compose(name, "kto")
    write_settings(tmp_path, run.resolved)
    again = read_settings(tmp_path / "settings.yaml")
    assert (again.resolved, again.model, again.data) == (run.resolved, run.model, run.data)


def test_demo_fits_a_cpu() -> None:
    args = read("demo").training
    assert args.use_cpu
    assert not args.bf16
    assert (args.total_train_batch_size, args.per_device_train_batch_size, args.max_length) == (32, 8, 128)


# file of training_configs/onpolicy: model, longest response, annotator, training file
ON_POLICY = {
    "llama-3-8b-instruct": (LLAMA3_INSTRUCT, 2048, "RLHFlow/ArmoRM-Llama3-8B-v0.1", "llama-3-8b-instruct-simpo-v2"),
    "llama-3-8b-instruct-pairrm": (LLAMA3_INSTRUCT, 2048, "llm-blender/PairRM-hf", "llama-3-8b-instruct-simpo"),
    "gemma-2-9b-it": ("google/gemma-2-9b-it", 4096, "RLHFlow/ArmoRM-Llama3-8B-v0.1", "gemma-2-9b-it-simpo"),
}


@pytest.mark.parametrize("name", sorted(ON_POLICY))
def test_published_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    recipe = read_recipe([CONFIGS / "onpolicy" / f"{name}.yaml"], rounds=True)
    model, max_new_tokens, reward, training = ON_POLICY[name]
    generate, binarize = recipe.generate, recipe.binarize
    assert (generate.model_name_or_path, generate.dataset_name, generate.dataset_split) == (
        model, ULTRAFEEDBACK, "train_prefs",
    )  # fmt: skip
    assert (generate.seeds, generate.num_responses) == ([13, 21, 42, 79, 100], 5)
    assert (generate.temperature, generate.top_p, generate.max_new_tokens) == (0.8, 0.95, max_new_tokens)
    assert [entry["model"] for entry in recipe.annotate.annotators.values()] == [reward]
    assert (binarize.pairs, binarize.test_size) == ("best_worst", 0.02)
    published = read(training).training
    assert recipe.train is not None and recipe.train["beta"] == published.beta
    assert (recipe.train["learning_rate"], recipe.train["gamma_beta_ratio"]) == (
        published.learning_rate, published.gamma_beta_ratio,
    )  # fmt: skip
    assert recipe.evaluate is not None and recipe.evaluate.annotator == "armorm"
    assert (recipe.evaluate.generate.dataset_split, recipe.evaluate.generate.seeds) == ("test_prefs", [13])


def test_every_file_of_pairs_is_listed() -> None:
    assert {path.stem for path in (CONFIGS / "onpolicy").glob("*")} == set(ON_POLICY)
