"""Guard rails: each rule fires where it should, not beside it, nor on what is shipped; its fix silences it."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from simpo import PreferenceConfig
from simpo.config import DataConfig, ModelSettings
from simpo.errors import ConfigError
from simpo.run.guard import about_parameters
from simpo.settings import Advice, RunFacts, lint, read_settings, strict_problems
from simpo.settings.case import SMALL
from simpo.settings.fieldtypes import field_types
from simpo.settings.rules import RULES

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "training_configs"
LARGE, LITTLE = 8_000_000_000, 1_000_000
LORA = {"use_peft": True, "learning_rate": 1e-5}
INSTRUCT = {"model_name_or_path": "google/gemma-2-9b-it", "dataset_mixer": {"org/ultrafeedback_binarized": 1.0}}
MATHS = {"dataset_mixer": {"org/gsm8k-pairs": 1.0}}
PAPER = {"tokenization": "paper"}
LENGTHS = np.arange(1, 1001)  # tokens of a pair

# rule: settings and facts on which it fires, and what makes its neighbours that it is silent on.
PLANTED: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "learning_rate_breaks": ({"learning_rate": 1e-5}, ({"learning_rate": 9e-6}, LORA, {"parameters": LITTLE})),
    "learning_rate_high": (
        {"learning_rate": 2.1e-6},
        ({"learning_rate": 2e-6}, {"learning_rate": 1e-5}, {"use_peft": True}, {"parameters": LITTLE}),
    ),
    "learning_rate_adapter_high": (LORA | {"learning_rate": 6e-5}, ({"learning_rate": 5e-5}, {"use_peft": False})),
    "learning_rate_adapter_low": (LORA | {"learning_rate": 2e-6}, ({"learning_rate": 3e-6}, {"use_peft": False})),
    "total_train_batch_size": ({"total_train_batch_size": 256}, ({"total_train_batch_size": 128},)),
    "beta_low": ({"beta": 0.9}, ({"beta": 1.0}, {"length_normalization": False}, {"objective": "dpo", "beta": 0.1})),
    "gamma_beta_ratio_high": (
        {"gamma_beta_ratio": 1.1},
        ({"gamma_beta_ratio": 1.0}, {"length_normalization": False}, {"objective": "dpo", "gamma_beta_ratio": 10.0}),
    ),
    "half_precision_masters": ({"dtype": "bfloat16"}, ({"dtype": "float32"}, {"dtype": None}, LORA)),
    "max_length_cuts": (
        {"lengths": LENGTHS, "max_length": 899},
        ({"max_length": 900}, {"lengths": None}, {"truncation": "drop"}),
    ),
    "max_length_spare": (
        {"lengths": LENGTHS, "max_length": 2049},
        ({"max_length": 2048}, {"lengths": None}, {"max_prompt_length": 1024}),
    ),
    "tokenization_paper": (
        PAPER | {"model_name_or_path": "Qwen/Qwen2.5-7B-Instruct"},
        ({"tokenization": "standard"}, {"model_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2"}),
    ),
    "off_policy": (
        INSTRUCT,
        (
            {"model_name_or_path": "princeton-nlp/Llama-3-Base-8B-SFT"},
            {"model_name_or_path": "org/gemma-7b-italian"},
            {"dataset_mixer": {"princeton-nlp/gemma2-ultrafeedback-armorm": 1.0}},
        ),
    ),
    "reasoning_rate": (
        MATHS | {"learning_rate": 1e-6},
        ({"learning_rate": 5e-7}, {"dataset_mixer": {"org/chats": 1.0}}, LORA),
    ),
    "reasoning_kept": (
        MATHS,
        (
            {"sft_weight": 0.1},
            {"dataset_mixer": {"org/chats": 1.0}},
            {"objective": "orpo"},
            {"dataset_mixer": {"/home/mathias/pairs.jsonl": 1.0}},
            {"dataset_mixer": {"org/mathew-aftermath": 1.0}},
        ),
    ),
    "sft_weight_chat": ({"sft_weight": 0.1}, ({"sft_weight": 0.0}, MATHS, {"objective": "dpo"})),
    "no_evaluation": ({"eval_pairs": 0}, ({"eval_pairs": 1}, {"eval_pairs": None})),
    "no_checkpoints": (
        {"save_strategy": "no", "train_pairs": 201 * 128},
        (
            {"save_strategy": "steps", "save_steps": 200},
            {"save_strategy": "epoch"},
            {"train_pairs": 200 * 128},
            {"max_steps": 200},
            {"train_pairs": None},
        ),
    ),
    "small_model": (
        {"parameters": SMALL - 1, "learning_rate": 2e-4},
        ({"parameters": SMALL}, {"learning_rate": 1e-6}, {"parameters": None}),
    ),
}
GOOD = {"learning_rate": 1e-6, "total_train_batch_size": 128, "save_strategy": "steps"}


def fired(tmp_path: Path, **given: Any) -> dict[str, Any]:
    """Advice by its rule's name, for settings and facts in one mapping beside good ones."""
    values = GOOD | {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False} | given
    facts = {key: values.pop(key) for key in RunFacts.__dataclass_fields__ if key in values}
    parts: dict[type, dict[str, Any]] = {PreferenceConfig: {}, ModelSettings: {}, DataConfig: {}}
    for key, value in values.items():
        parts[field_types()[key].owner][key] = value
    built = [part(**own) for part, own in parts.items()]
    return {advice.name: advice for advice in lint(*built, RunFacts(**facts))}


def followed(values: dict[str, Any], advice: Iterable[Advice]) -> dict[str, Any]:
    """Settings of a file once every line of advice is followed, with what stands behind `#`."""
    values = dict(values)
    for one in advice:
        line, _, more = one.fix.partition("  # ")
        values |= yaml.safe_load(line) or {}
        word, _, rest = more.partition(" ")
        if word == "with":
            values |= yaml.safe_load(rest)
        if word == "without":
            values.pop(rest.rpartition(" ")[2], None)
    return values


def test_good_settings_are_left_alone(tmp_path: Path) -> None:
    assert fired(tmp_path) == {}


def test_every_rule_is_planted_and_named_once() -> None:
    names = [rule.name for rule in RULES]
    assert set(names) == set(PLANTED) and len(set(names)) == len(names)
    assert {rule.setting for rule in RULES} <= set(field_types())


@pytest.mark.parametrize("name", PLANTED)
def test_a_rule_fires_on_its_case_and_on_no_neighbour(name: str, tmp_path: Path) -> None:
    case, neighbours = PLANTED[name]
    assert name in fired(tmp_path, **case)
    for neighbour in neighbours:
        assert name not in fired(tmp_path, **case | neighbour), neighbour


@pytest.mark.parametrize("name", sorted(set(PLANTED) - {"small_model"}))
def test_the_fix_is_a_line_of_yaml_that_helps(name: str, tmp_path: Path) -> None:
    advice = fired(tmp_path, **PLANTED[name][0])[name]
    ((key, value),) = yaml.safe_load(advice.fix).items()
    field_types()[key].fit(value, None)
    # whether anything is held out is a fact; the line makes it so
    given = followed(PLANTED[name][0], [advice]) | ({"eval_pairs": 1} if key == "test_size" else {})
    assert name not in fired(tmp_path, **given)
    assert key == advice.setting and "{" not in advice.message
    assert advice.lines()[0].startswith("!" if advice.level == "warning" else "-") and advice.fix in advice.lines()[1]


@pytest.mark.parametrize(
    "name", ["org/math-pairs", "org/MetaMathQA", "org/OpenMathInstruct-2", "org/MATH", "org/math_500"]
)
def test_names_of_maths_are_known(name: str, tmp_path: Path) -> None:
    assert "reasoning_kept" in fired(tmp_path, dataset_mixer={name: 1.0})


def test_spare_length_stays_above_the_prompts(tmp_path: Path) -> None:
    case: dict[str, Any] = {"lengths": np.full(1000, 200), "max_length": 2048}
    fix = fired(tmp_path, **case)["max_length_spare"].fix
    assert fix == "max_length: 640"  # max_prompt_length is 512
    assert "max_length_spare" not in fired(tmp_path, **case | yaml.safe_load(fix))
    assert "max_length_spare" not in fired(tmp_path, **case, max_prompt_length=1800)  # as in the published recipes


def test_the_line_for_the_batch_says_what_would_contradict_it(tmp_path: Path) -> None:
    steps = {"total_train_batch_size": None, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 2}
    fix = fired(tmp_path, **steps)["total_train_batch_size"].fix
    values = steps | yaml.safe_load(fix)
    with pytest.raises(ConfigError, match="leave gradient_accumulation_steps out"):
        fired(tmp_path, **values)
    del values[fix.rpartition("# without ")[2]]
    assert "total_train_batch_size" not in fired(tmp_path, **values)


@pytest.mark.parametrize(
    ("save_steps", "told"), [(200, False), (299, False), (0.5, False), (300, True), (10_000, True)]
)
def test_a_distance_that_is_never_reached_is_none(save_steps: float, told: bool, tmp_path: Path) -> None:
    run = {"save_strategy": "steps", "save_steps": save_steps, "max_steps": 300}
    found = fired(tmp_path, **run)
    assert ("no_checkpoints" in found) == told
    if told:
        assert "before the end of 300 steps" in found["no_checkpoints"].message
        assert "no_checkpoints" not in fired(tmp_path, **run | yaml.safe_load(found["no_checkpoints"].fix))
        best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": save_steps}
        assert "no_checkpoints" not in fired(tmp_path, **run | best)  # a line of ours would contradict eval_steps


# Settings that rules are about, some of them wrong, alone and together; what is absent is not written.
WRITTEN: dict[str, list[Any]] = {
    "learning_rate": [1e-7, 1e-6, 2e-6, 3e-6, 1e-5, 6e-5, 1e-3],
    "total_train_batch_size": [None, 1, 32, 128, 256],
    "gradient_accumulation_steps": [None, 4],
    "per_device_train_batch_size": [None, 2],
    "beta": [None, 0.1, 0.5, 1.0, 2.0, 10.0],
    "gamma": [None, None, 0.0, 0.5, 1.6, 30.0],
    "gamma_beta_ratio": [None, 0.5, 5.0],
    "objective": [None, None, "dpo"],
    "sft_weight": [None, 0.1],
    "use_peft": [None, True],
    "dtype": [None, "bfloat16"],
    "model_init_kwargs": [None, {"dtype": "float16"}],
    "max_length": [600, 1024, 2048, 8192],
    "truncation": [None, "drop"],
    "tokenization": [None, "paper"],
    "model_name_or_path": ["org/model", "google/gemma-2-9b-it"],
    "dataset_mixer": [{"org/ultrafeedback_binarized": 1.0}, {"org/gsm8k": 1.0}],
    "save_strategy": [None, "no", "steps", "epoch"],
    "save_steps": [None, 0.5, 100, 10_000],
    "max_steps": [None, 201, 5000],
}
FACTS: dict[str, list[Any]] = {
    "parameters": [None, LARGE, LITTLE],
    "context": [None, 512, 768, 4096],
    "train_pairs": [None, 1000, 60_000],
    "lengths": [None, LENGTHS, np.full(1000, 200), np.full(1000, 1500), LENGTHS * 5],
}


def test_following_all_advice_leaves_no_warning(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = tmp_path / "run.yaml"
    fires = set()

    def advice_on(values: dict[str, Any], facts: RunFacts) -> Any:
        path.write_text(yaml.safe_dump(values))
        run = read_settings(path)
        return lint(run.training, run.model, run.data, facts)

    tried = 0
    while tried < 150:
        values = {key: draw.choice(choices) for key, choices in WRITTEN.items()}
        values = {key: value for key, value in values.items() if value is not None}
        values |= {"output_dir": str(tmp_path / "out"), "use_cpu": True, "bf16": False}
        facts = RunFacts(**{key: draw.choice(choices) for key, choices in FACTS.items()})
        try:
            advice = advice_on(values, facts)
        except ConfigError:  # settings that contradict each other are not run at all
            continue
        tried += 1
        fires |= {one.name for one in advice}
        values = followed(values, advice)
        advice = advice_on(values, facts)
        assert [one for one in advice if one.level == "warning"] == [], values
        for _ in range(2):  # a note can follow from other data or another rate; it comes to rest too
            values = followed(values, advice)
            advice = advice_on(values, facts)
        assert {one.name for one in advice} <= {"small_model"}, values
    assert fires == set(PLANTED) - {"no_evaluation"}


def test_names_of_own_folders_say_nothing_of_answers(tmp_path: Path) -> None:
    own, hub = tmp_path / "ultrafeedback_binarized", "org/ultrafeedback_binarized"
    own.mkdir()
    given = INSTRUCT | {"dataset_mixer": {str(own): 1.0}}
    assert "off_policy" not in fired(tmp_path, **given)
    both = fired(tmp_path, **given | {"dataset_mixer": {str(own): 1.0, hub: 1.0}})["off_policy"]
    assert both.message.startswith(f"{hub}: answers of other models.")


def test_what_cannot_be_read_is_dropped(tmp_path: Path) -> None:
    case = {"lengths": LENGTHS, "max_length": 512, "max_prompt_length": 256}
    assert fired(tmp_path, **case)["max_length_cuts"].fix == "max_length: 1024"  # the 99th percentile, rounded up
    assert "49% of the pairs" in fired(tmp_path, **case)["max_length_cuts"].message
    assert fired(tmp_path, **case, context=950)["max_length_cuts"].fix == "max_length: 950"  # 5% are cut
    for context in (768, 512):  # 23% and 49% would still be cut
        assert fired(tmp_path, **case, context=context)["max_length_cuts"].fix == "truncation: drop"
    for context in (950, 768, 512):
        fix = yaml.safe_load(fired(tmp_path, **case, context=context)["max_length_cuts"].fix)
        assert "max_length_cuts" not in fired(tmp_path, **case | fix, context=context)


def test_a_folder_is_judged_by_its_architecture(tmp_path: Path) -> None:
    folder = PAPER | {"model_name_or_path": str(tmp_path)}
    assert "tokenization_paper" not in fired(tmp_path, **folder, model_type="llama")
    assert "tokenization_paper" in fired(tmp_path, **folder, model_type="qwen2")


def test_masters_that_deepspeed_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("bfloat16", "float16", "auto", torch.bfloat16):
        assert "half_precision_masters" in fired(tmp_path, model_init_kwargs={"dtype": dtype})
    assert "half_precision_masters" not in fired(tmp_path, model_init_kwargs={"dtype": torch.float32})
    monkeypatch.setattr(PreferenceConfig, "deepspeed_plugin", object(), raising=False)
    args = PreferenceConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **GOOD)
    args.deepspeed_plugin = object()
    assert lint(args, ModelSettings(dtype="bfloat16")) == []


def test_a_small_step_leaves_bfloat16_weights_as_they_are() -> None:
    weights = torch.logspace(-6, 0, 10_000)
    change = (weights.bfloat16() - torch.tensor(1e-6, dtype=torch.bfloat16)) != weights.bfloat16()
    assert change.any() and weights[change].max() < 0.0005
    assert ((weights - 1e-6) != weights).all()


# --- what is shipped --------------------------------------------------------------------------------------------

SHIPPED = sorted(CONFIGS.glob("*.yaml"))
OBJECTIVES = [None, *sorted((CONFIGS / "objectives").glob("*.yaml"))]
NAMES = {path.stem for path in SHIPPED}
# DPO's values for a setting, and the file of the setting
PUBLISHED_DPO = {
    path.stem[4:]: next(name for name in (f"{path.stem[4:]}-simpo", f"{path.stem[4:-3]}-simpo-v2") if name in NAMES)
    for path in OBJECTIVES
    if path is not None and path.stem.startswith("dpo-") and path.stem[4:] not in ("length-normalization", "margin")
}
# recipe: the notes that it is meant to raise
NOTES = {"demo": {"small_model"}}


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_recipe_warns(recipe: Path) -> None:
    parameters = LITTLE if recipe.stem == "demo" else LARGE
    facts = RunFacts(parameters=parameters, train_pairs=60_000, eval_pairs=1000)
    for objective in OBJECTIVES:
        files = [recipe] if objective is None else [recipe, objective]
        if objective is not None and objective.stem.removeprefix("dpo-") in PUBLISHED_DPO:
            continue  # the values of one setting
        run = read_settings(files, ["--use_cpu=true", "--bf16=false"])
        advice = lint(run.training, run.model, run.data, facts)
        expected = NOTES.get(recipe.stem, set()) | ({"sft_weight_chat"} if run.training.sft_weight else set())
        assert {one.name for one in advice} == expected, objective
        assert strict_problems(advice) == ""


@pytest.mark.parametrize("name", PUBLISHED_DPO)
def test_published_dpo_does_not_warn_behind_its_setting_and_does_behind_an_adapter(name: str) -> None:
    def names(setting: str) -> set[str]:
        files = [CONFIGS / f"{setting}.yaml", CONFIGS / "objectives" / f"dpo-{name}.yaml"]
        run = read_settings(files, ["--use_cpu=true", "--bf16=false"])
        return {one.name for one in lint(run.training, run.model, run.data, RunFacts(parameters=LARGE))}

    assert names(PUBLISHED_DPO[name]) == set()
    assert names("llama-3-8b-instruct-lora-80gb") == {"learning_rate_adapter_low"}


def test_the_demo_is_silent_by_its_size_alone() -> None:
    run = read_settings(CONFIGS / "demo.yaml")
    names = {one.name for one in lint(run.training, run.model, run.data, RunFacts(parameters=LARGE))}
    assert names == {"learning_rate_breaks", "total_train_batch_size"}


def test_sizes_are_about_right(tiny_dir: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    counted = about_parameters(model.config)
    assert counted is not None and counted == pytest.approx(model.num_parameters(), rel=0.01)
    demo = LlamaConfig(hidden_size=128, num_hidden_layers=4, intermediate_size=384, vocab_size=2000)
    assert about_parameters(demo) < SMALL < 494e6  # Qwen2.5-0.5B is judged
    llama3 = LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=14336, vocab_size=128256, tie_word_embeddings=False,
    )  # fmt: skip
    assert about_parameters(llama3) == pytest.approx(8.03e9, rel=0.001)
    assert about_parameters(MixtralConfig()) is None  # experts: not counted, and judged as a large model


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_lists_every_rule() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text().partition("\n## Guard rails\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert [(name, level, source) for name, level, _, source, _ in rows] == [
        (f"`{rule.name}`", rule.level, rule.source) for rule in RULES
    ]
    for (*_, fix), rule in zip(rows, RULES, strict=True):
        if "{case" not in rule.fix:  # else it is made of the run's own numbers
            assert fix.strip("`") == (rule.fix.format() or "nothing")


def test_warnings_are_told_with_their_number(tmp_path: Path) -> None:
    advice = list(fired(tmp_path, beta=0.1, sft_weight=1.0).values())
    assert strict_problems(advice).startswith(
        "--strict counts warnings as errors; the settings raise 1\n  beta_low: 0.1"
    )
    assert strict_problems(one for one in advice if one.level == "note") == ""
