"""SPACE.yaml: what is read, what is refused and where the message points, and candidates against the configuration."""

from pathlib import Path
from typing import Any

import pytest

from simpo.errors import ConfigError
from simpo.settings import check_settings
from simpo.sweep.axes import Choices, Span, show_value
from simpo.sweep.space import check_candidates, override_words, read_space, start_of
from simpo.sweep.study import make_pruner

PRESETS = Path(__file__).parents[2] / "training_configs"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: some/model\ndataset_mixer: {pairs.jsonl: 1.0}\nuse_cpu: true\nbeta: 3\n")
    return str(path)


def test_everything_that_can_be_said(write) -> None:
    sweep = read_space(
        write(
            "sampler: tpe\ntrials: 7\nmetric: eval_loss\ndirection: minimize\nseed: 1\npruner: median\n"
            "pruner_options: {n_startup_trials: 2}\ndevices: [[0, 1], [2, MIG-3]]\naccelerate: zero3\n"
            "command: python my_eval.py {output_dir}\nkeep: all\nspace:\n  learning_rate: [3e-7, 1e-6]\n"
            "  beta: {low: 2, high: 10, log: true}\n  gamma_beta_ratio: {low: 0, high: 1, step: 0.1}\n"
            "  max_length: {low: 512, high: 1024, step: 256}\n  truncation: [cut, drop]\n  bf16: [true, false]\n"
        )
    )
    assert sweep.devices == [("0", "1"), ("2", "MIG-3")] and sweep.slots == sweep.devices
    assert (sweep.trials, sweep.seed, sweep.keep, sweep.direction) == (7, 1, "all", "minimize")
    assert sweep.space == {
        "learning_rate": Choices((3e-7, 1e-6)),
        "beta": Span(2.0, 10.0, log=True),
        "gamma_beta_ratio": Span(0.0, 1.0, 0.1),
        "max_length": Span(512, 1024, 256, whole=True),
        "truncation": Choices(("cut", "drop")),
        "bf16": Choices((True, False)),
    }
    assert sweep.space["gamma_beta_ratio"].values() == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert sweep.space["max_length"].values() == (512, 768, 1024)
    assert sweep.finite_values() is None and sweep.where["gamma_beta_ratio"].endswith("space.yaml:15")


def test_whole_numbers_become_the_settings_type(write) -> None:
    (axis,) = read_space(write("space: {beta: [2, 10]}\n")).space.values()
    assert [type(value) for value in axis.values() or ()] == [float, float]
    assert read_space(write("space: {beta: [2, 10]}\n")).trials == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trials: 3\n", "space.yaml: space is missing; write space: "),
        ("smapler: grid\nspace: {beta: [2]}\n", "space.yaml:1: unknown key 'smapler'; did you mean 'sampler'?"),
        ("beta: [2]\nspace: {beta: [2]}\n", "space.yaml:1: unknown key 'beta'; settings are searched under `space:`"),
        ("sampler: bayes\nspace: {beta: [2]}\n", "space.yaml:1: sampler: 'bayes' is not possible: write one of tpe"),
        ("trials: 0\nspace: {beta: [2]}\n", "space.yaml:1: trials: 0 is not possible: write a whole number above 0"),
        ("space: {beta: [2]}\ncommand: python x.py\n", "space.yaml:2: command: 'python x.py' is not possible"),
        ("space: {beta: [2]}\ndevices: [0, 1]\n", "write a list of lists of devices, such as [[0, 1], [2, 3]]"),
        ("space: {beta: [2]}\ndevices: [[0], [0]]\n", "space.yaml:2: devices: 0 stands twice"),
        ("space: {beta: [2]}\ndevices: [[0, 1]]\n", "devices: several devices for a run need accelerate"),
        ("space:\n  beta: 3\n", "space.yaml:2: beta: 3 is nothing to search; write a list of values"),
        ("space:\n  seed: [1]\n  beta: [2, 2.0]\n", "space.yaml:3: beta: 2.0 stands twice; keep one"),
        ("space:\n  beta: [two]\n", "space.yaml:2: beta: 'two' is not possible: write a number"),
        ("space:\n  beta: [[2]]\n", "holds a list or mapping; put each in quotes"),
        ("space:\n  beta: {low: 3, high: 2}\n", "low: 3 and high: 2 must be numbers, low below high"),
        ("space:\n  beta: {low: 0, high: 2, log: true}\n", "log: true goes without step, and with low above 0"),
        ("space:\n  beta: {lo: 1, high: 2}\n", "is no span; write {low: 2, high: 10}"),
        ("space:\n  max_length: {low: 1.5, high: 8}\n", "space.yaml:2: max_length: takes whole numbers only"),
        ("space:\n  output_dir: [a, b]\n", "space.yaml:2: output_dir: is set by the sweep"),
        ("sampler: grid\nspace:\n  beta: {low: 2, high: 3}\n", "space.yaml:3: beta: sampler: grid needs a list"),
        ("sampler: grid\ntrials: 2\nspace: {beta: [2]}\n", "space.yaml:2: trials: is not used by sampler: grid"),
        ("pruner_options: {a: 1}\nspace: {beta: [2]}\n", "space.yaml:1: pruner_options: is not used without a pruner"),
        ("pruner: median\ncommand: x {output_dir}\nspace: {beta: [2]}\n", "pruner: watches `metric`, while `command`"),
    ],
)
def test_what_is_refused(write, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_space(write(text))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space: {bta: [2]}\n", "space.yaml:1: unknown setting 'bta'; did you mean 'beta'?"),
        ("space:\n  seed: [1]\n  gamma_beta_ratio: [0.5, -1]\n", "space.yaml:3: gamma_beta_ratio: -1.0 must be 0 or"),
        ("space:\n  gamma_beta_ratio: {low: -1, high: 1}\n", "space.yaml:2: gamma_beta_ratio: -1.0 must be 0 or more"),
        ("space:\n  loss_type: [sigmoid, hing]\n", "space.yaml:2: loss_type: 'hing' is not possible"),
        (
            "space:\n  max_length: [512, 2048]\n  max_prompt_length: [256, 1024]\n",
            "max_prompt_length: 1024 must be below max_length: 512",
        ),
        ("pruner: median\nspace: {beta: [2]}\n", "space.yaml:1: pruner: median needs evaluations during training"),
    ],
)
def test_every_candidate_is_checked_before_the_first_run(write, config: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_candidates(read_space(write(text)), [config], [])
    assert message in str(error.value)


def test_mistakes_of_the_configuration_are_its_own(write, config: str) -> None:
    with pytest.raises(ConfigError, match="command line: unknown setting 'bta'"):
        check_candidates(read_space(write("space: {beta: [2]}\n")), [config], ["--bta=1"])


def test_pruner_options_are_checked(write) -> None:
    with pytest.raises(ConfigError, match=r"space.yaml:2: pruner_options: .*; median takes n_startup_trials, n_warmup"):
        make_pruner(read_space(write("pruner: median\npruner_options: {startup: 2}\nspace: {beta: [2]}\n")))


def test_words_read_back_equal(config: str) -> None:
    params = {
        "learning_rate": 3e-7, "bf16": False, "save_strategy": "no", "max_steps": 7,
        "lora_target_modules": "all-linear",
        "max_tokens_per_microbatch": None, "use_peft": True,
    }  # fmt: skip
    read = check_settings([config], override_words(params))
    assert {key: read[key] for key in params if key != "save_strategy"} == {
        key: value for key, value in params.items() if key != "save_strategy"
    }
    assert str(getattr(read["save_strategy"], "value", read["save_strategy"])) == "no"


def test_stages_begin_at_the_configuration(write, config: str) -> None:
    sweep = read_space(write("sampler: staged\nspace: {learning_rate: [3e-7], beta: [2, 10]}\n"))
    assert start_of(sweep, check_candidates(sweep, [config], [])) == {"learning_rate": 1e-6, "beta": 3.0}
    old = read_space(write("sampler: staged\nspace: {gamma: [0.3]}\n"))
    with pytest.raises(ConfigError, match=r"space.yaml:2: gamma: sampler: staged needs"):
        start_of(old, {})


def test_numbers_without_noise() -> None:
    assert Span(0.0, 1.0, 0.1).snap(0.30000000000000004) == 0.3
    assert Span(2.0, 10.0).snap(5.13698) == 5.137 and Span(2.00001, 10.0).snap(2.00001) == 2.00001
    assert [show_value(value) for value in (3e-7, 2.0, None, True, "cut")] == ["3e-07", "2", "null", "true", "cut"]


@pytest.mark.parametrize("path", sorted((PRESETS / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets(path: Path) -> None:
    check_candidates(read_space(path), [str(PRESETS / "your-own-data.yaml")], ["--use_cpu=true", "--bf16=false"])


def test_the_presets_hold_the_papers_values() -> None:
    staged = read_space(PRESETS / "sweeps" / "paper-staged.yaml")
    assert staged.sampler == "staged" and staged.finite_values() == {
        "learning_rate": (3e-7, 5e-7, 8e-7, 1e-6),
        "gamma_beta_ratio": (0.0, 0.3, 0.5, 0.8, 1.0),
        "beta": (2.0, 2.5, 10.0),
    }
    assert (staged.metric, staged.direction) == ("eval_rewards/accuracies", "maximize")
    dpo = read_space(PRESETS / "sweeps" / "dpo.yaml").finite_values()
    assert dpo == {"learning_rate": (3e-7, 5e-7, 8e-7, 1e-6), "beta": (0.01, 0.05, 0.1)}
