"""A file with sections: what the steps are told, what is refused, and with which words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from simpo.errors import ConfigError
from simpo.onpolicy.recipe import Launch, read_recipe
from tests.onpolicy.pipelines import write_pipeline


@pytest.fixture
def pipeline(tmp_path: Path) -> Any:
    """pipeline(**sections) -> path of a pipeline file with these changes."""
    return lambda **sections: write_pipeline(tmp_path, "some/model", **sections)


def line_of(path: Path, text: str) -> str:
    lines = path.read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if line.strip().startswith(text)]
    return f"{path}:{number}"


def test_sections_are_the_settings_of_the_steps(pipeline) -> None:
    recipe = read_recipe([pipeline()], rounds=True)
    assert (recipe.generate.num_responses, recipe.generate.seeds, recipe.generate.batch_size) == (3, [13, 21, 42], 36)
    assert recipe.annotate.use_cpu and recipe.binarize.test_size == 2
    assert recipe.train is not None and recipe.train["learning_rate"] == 1e-3
    assert not {"model_name_or_path", "dataset_mixer", "output_dir"} & recipe.train.keys()
    assert (recipe.prompts_per_round, recipe.keep_models, recipe.launch) == (None, "all", {})


def test_the_command_line_wins_over_a_later_file_and_that_over_an_earlier_one(pipeline, tmp_path: Path) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("generate: {temperature: 0.5, top_p: 0.5}\ntrain: {learning_rate: 2e-6}\n")
    words = ["--generate.top_p=0.7", "--output_dir=elsewhere", "--train.learning_rate=3e-6"]
    recipe = read_recipe([pipeline(), later], words)
    assert (recipe.generate.temperature, recipe.generate.top_p, recipe.generate.max_new_tokens) == (0.5, 0.7, 8)
    assert recipe.output_dir == Path("elsewhere")
    assert recipe.train is not None and recipe.train["learning_rate"] == 3e-6
    assert recipe.train["total_train_batch_size"] == 5


def test_a_file_of_a_run_gives_way_in_model_data_and_folder_only(pipeline, tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(
        "model_name_or_path: other/model\ndataset_name: other\noutput_dir: o\nbeta: 3.0\nlearning_rate: 1e-6\n"
        "gamma: 1.5\ndataset_splits: [train_prefs]\npush_to_hub_token: secret\n"
    )
    path = pipeline(train=[str(run), {"learning_rate": 5e-7}])
    recipe = read_recipe([path])
    assert recipe.train == {"beta": 3.0, "learning_rate": 5e-7, "gamma_beta_ratio": 0.5}


def test_training_loads_and_renders_as_sampling_does(pipeline) -> None:
    path = pipeline(generate={"trust_remote_code": True, "chat_template": "chatml"})
    recipe = read_recipe([path])
    assert recipe.train is not None
    assert (recipe.train["trust_remote_code"], recipe.train["chat_template"]) == (True, "chatml")
    own = read_recipe([path], ["--train.chat_template=zephyr"])
    assert own.train is not None and own.train["chat_template"] == "zephyr"


def test_evaluation_takes_over_the_policy_and_no_prompts(pipeline) -> None:
    path = pipeline(generate={"max_prompts": 3, "stop_token_ids": [7], "dataset_split": "train[:10]"})
    evaluate = read_recipe([path]).evaluate
    assert evaluate is not None
    asked = evaluate.generate
    assert (asked.temperature, asked.seeds, asked.max_prompts, asked.dataset_split) == (0.0, [13], None, "train")
    assert (asked.stop_token_ids, asked.max_new_tokens, asked.use_cpu) == ([7], 8, True)
    assert evaluate.annotator == "es"
    several = read_recipe([path], ["--evaluate.num_responses=2", "--evaluate.temperature=0.6"]).evaluate
    assert several is not None and several.generate.seeds == [13, 21]
    other = {"function": "e_counter:count", "kind": "function"}
    ours = read_recipe([pipeline(evaluate={"dataset_split": "test", "annotators": {"mine": other}})]).evaluate
    assert ours is not None and ours.annotator == "mine" and list(ours.annotate.annotators) == ["mine"]


def test_launches(pipeline) -> None:
    path = pipeline(launch={"generate": "multi_gpu", "annotate": {"accelerate": "cpu", "num_processes": 2}})
    recipe = read_recipe([path], ["--launch.train=zero3"])
    assert recipe.launch == {"generate": Launch("multi_gpu"), "annotate": Launch("cpu", 2), "train": Launch("zero3")}


@pytest.mark.parametrize(
    ("sections", "line", "message"),
    [
        ({"generate": {"temprature": 1}}, "temprature", "generate: unknown setting 'temprature'; did you mean"),
        ({"generate": {"temperature": "hot"}}, "temperature", "generate: temperature: hot has the wrong type: write a"),
        ({"generate": {"temperature": -1}}, "temperature", "generate: temperature: -1.0 must be 0 or more"),
        ({"generate": {"output_dir": "x"}}, "output_dir: x", "generate: output_dir is not to be written here: folders"),
        ({"generate": {"retry_errors": True}}, "retry_errors", "generate: retry_errors is not to be written here: run"),
        ({"annotate": {"generations": "x"}}, "generations", "annotate: generations is not to be written here"),
        ({"annotate": {"annotators": {"a": {"kind": "rm"}}}}, "annotators", "annotate: annotators: annotators.a: kind"),
        ({"binarize": {"scores": "x"}}, "scores", "binarize: scores is not to be written here"),
        ({"binarize": {"test_size": 1.5}}, "test_size", "binarize: test_size: 1.5 must be a fraction below 1"),
        ({"binarize": {"annotator": "ess"}}, "annotator:", "binarize: annotator: there is no 'ess'; did you mean 'es'"),
        ({"train": {"lerning_rate": 1}}, "lerning_rate", "train: unknown setting 'lerning_rate'; did you mean"),
        ({"train": {"beta": -1.0}}, "beta", "train: beta: -1"),
        ({"train": {"dataset_mixer": {"a": 1}}}, "dataset_mixer", "train: dataset_mixer is not to be written here: a"),
        ({"train": {"model_name_or_path": "a"}}, "model_name_or_path: a", "train: model_name_or_path is not to be"),
        ({"evaluate": {"engine": "vllm"}}, "engine", "evaluate: engine is not to be written here: it is the policy of"),
        ({"evaluate": {"model_name_or_path": "a"}}, "model_name_or_path: a", "evaluate: model_name_or_path is not to"),
        ({"launch": {"binarize": "cpu"}}, "binarize: cpu", "launch: unknown step 'binarize'; write one of generate"),
        ({"launch": {"train": {"acelerate": "cpu"}}}, "train:\n", "launch: train: unknown setting 'acelerate'"),
        ({"prompts_per_round": 0}, "prompts_per_round", "prompts_per_round: 0 must be at least 1"),
        ({"keep_models": "best"}, "keep_models", "keep_models: best is unknown: write one of all, last"),
        ({"generat": {}}, "generat:", "unknown setting 'generat'; did you mean 'generate'?"),
    ],
)
def test_refusals_say_where(pipeline, sections: dict[str, Any], line: str, message: str) -> None:
    path = pipeline(**sections)
    with pytest.raises(ConfigError) as refused:
        read_recipe([path])
    if line.endswith("\n"):  # the key of the section launch, not the section of that name
        assert message in str(refused.value)
    else:
        assert f"{line_of(path, line)}: {message}" in str(refused.value)


def test_everything_wrong_is_said_at_once(pipeline) -> None:
    path = pipeline(generate={"temprature": 1}, binarize={"test_size": 1.5}, train={"beta": -1.0, "output_dir": "o"})
    with pytest.raises(ConfigError) as refused:
        read_recipe([path], ["--anotate.use_cpu=true", "--generate={}"])
    text = str(refused.value)
    assert text.startswith("6 settings are wrong")
    assert (
        "command line: --anotate.use_cpu=true: there is no section 'anotate'; did you mean --annotate.use_cpu?" in text
    )
    assert "command line: --generate: write --generate.SETTING=value" in text


@pytest.mark.parametrize("missing", ["train", "evaluate"])
def test_rounds_need_all_sections(pipeline, missing: str) -> None:
    path = pipeline()
    recipe = yaml.safe_load(path.read_text())
    for without in ({key: value for key, value in recipe.items() if key != missing}, {**recipe, missing: None}):
        path.write_text(yaml.safe_dump(without))
        assert read_recipe([path])
        with pytest.raises(ConfigError, match=f"section {missing} is missing"):
            read_recipe([path], rounds=True)


def test_evaluation_on_the_prompts_of_training_is_refused(pipeline) -> None:
    path = pipeline()
    recipe = yaml.safe_load(path.read_text())
    recipe["evaluate"] = {"max_prompts": 3}
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match="evaluate: dataset_split, or dataset_name, is missing: prompts that are"):
        read_recipe([path])


@pytest.mark.parametrize(
    "kind", [{"kind": "pairrm"}, {"kind": "judge", "model": "m", "base_urls": "http://localhost:8000/v1"}]
)
def test_scores_that_compare_no_policies_do_not_evaluate(pipeline, kind: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"annotators.one: kind: {kind['kind']} ranks the responses to one prompt"):
        read_recipe([pipeline(annotate={"annotators": {"one": kind}})])


def test_several_annotators_need_one_that_counts(pipeline) -> None:
    function = {"kind": "function", "function": "e_counter:count"}
    path = pipeline(annotate={"annotators": {"a": function, "b": function}})
    with pytest.raises(ConfigError, match=r"binarize: annotator is missing; name one of a, b"):
        read_recipe([path])
    recipe = read_recipe([path], ["--binarize.annotator=b"])
    assert recipe.evaluate is not None and recipe.evaluate.annotator == "b"


def test_missing_files_of_training_are_named(pipeline) -> None:
    path = pipeline(train=["no-such.yaml"])
    with pytest.raises(ConfigError, match=rf"{line_of(path, '- no-such')}: train: settings file no-such.yaml does not"):
        read_recipe([path])
