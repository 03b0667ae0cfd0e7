"""Downstream tasks: what lm_eval is asked, and what is made of its answer. A stand-in takes its place; a real one is
used where it is installed and reads local files."""

import importlib.util
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from simpo.errors import ConfigError, DataError
from simpo.evals.downstream import TASKS, DownstreamSettings, run_downstream
from simpo.evals.results import read_result
from simpo.evals.tables.compare import compare, find_results

MMLU = {"mmlu": ["mmlu_stem", "mmlu_other"], "mmlu_stem": ["mmlu_anatomy", "mmlu_physics"], "mmlu_other": ["mmlu_law"]}


def answer_of(task: str) -> dict[str, Any]:
    """In the form of lm_eval 0.4.13."""
    name, _, kind = TASKS[task].metric.partition(",")
    leaves = ["mmlu_anatomy", "mmlu_physics", "mmlu_law"] if task == "mmlu" else [task]
    results: dict[str, Any] = {
        leaf: {"alias": leaf, TASKS[task].metric: 0.5 + at / 10, f"{name}_stderr,{kind}": 0.03, "acc,other": 0.9}
        for at, leaf in enumerate(leaves)
    }
    if task == "mmlu":
        for group in MMLU:
            results[group] = {"acc,none": 0.111, "acc_stderr,none": "N/A", "alias": group}
    return {
        "results": results,
        "group_subtasks": MMLU if task == "mmlu" else {task: []},
        "versions": dict.fromkeys(leaves, 1.0),
        "n-shot": dict.fromkeys(leaves, TASKS[task].shots),
        "n-samples": {leaf: {"original": 100, "effective": 80} for leaf in leaves},
        "config": {"model_args": object()},
    }


class Fake:
    """Stands in for lm_eval: keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.loaded: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.first_process = True

    def simple_evaluate(self, **given: Any) -> dict[str, Any] | None:
        self.calls.append(given)
        if self.error is not None:
            raise self.error
        return answer_of(given["tasks"][0]) if self.first_process else None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    stand_in = Fake()
    package, models, hub, tasks = (types.ModuleType(name) for name in (
        "lm_eval", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.tasks"))  # fmt: skip
    package.simple_evaluate, package.__version__ = stand_in.simple_evaluate, "0.4.13"  # type: ignore[attr-defined]
    hub.HFLM = lambda **given: stand_in.loaded.append(given) or f"model {len(stand_in.loaded)}"  # type: ignore[attr-defined, func-returns-value]
    tasks.TaskManager = lambda **given: ("tasks", given)  # type: ignore[attr-defined]
    for module in (package, models, hub, tasks):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return stand_in


@pytest.fixture
def make_settings(tiny_dir, tmp_path: Path) -> Any:
    def make(**settings: Any) -> DownstreamSettings:
        return DownstreamSettings(**{"model_name_or_path": tiny_dir, "output_dir": str(tmp_path / "out")} | settings)

    return make


def test_what_lm_eval_is_asked(fake: Fake, make_settings, tiny_dir) -> None:
    run_downstream(make_settings(batch_size=4))
    assert [(call["tasks"], call["num_fewshot"]) for call in fake.calls] == [
        (["mmlu"], 5), (["arc_challenge"], 25), (["hellaswag"], 10), (["truthfulqa_mc2"], 0), (["winogrande"], 5),
        (["gsm8k"], 5),
    ]  # fmt: skip
    assert {(call["model"], call["apply_chat_template"], call["limit"]) for call in fake.calls} == {
        ("model 1", False, None)
    }
    (loaded,) = fake.loaded  # once for all tasks
    assert loaded == {
        "pretrained": tiny_dir,
        "revision": "main",
        "dtype": "auto",
        "batch_size": 4,
        "trust_remote_code": False,
        "use_safetensors": True,
    }


def test_the_numbers(fake: Fake, make_settings, tmp_path: Path) -> None:
    (result,) = run_downstream(make_settings(name="mine"))
    assert read_result(tmp_path / "out") == result and result.model == "mine"
    metrics = result.metrics
    assert metrics["mmlu"].value == pytest.approx(60.0)  # of subjects, not lm_eval's 11.1
    assert metrics["mmlu"].stderr == pytest.approx(3.0 / 3**0.5)
    assert metrics["gsm8k"].value == 50.0 and metrics["gsm8k"].stderr == pytest.approx(3.0)
    assert metrics["gsm8k"].high == pytest.approx(50 + 1.96 * 3, abs=1e-3)
    assert metrics["average"].value == pytest.approx((60 + 5 * 50) / 6)
    assert metrics["average"].stderr == pytest.approx((5 * 9 + 3) ** 0.5 / 6)
    assert list(metrics) == [*TASKS, "average"]
    assert result.counts["mmlu"] == 240 and result.settings["shots"]["arc_challenge"] == 25
    assert result.settings["versions"]["gsm8k"] == 1.0 and result.settings["lm_eval"] == "0.4.13"


def test_against_the_initial_model(fake: Fake, make_settings, tmp_path: Path) -> None:
    initial = make_settings().model_name_or_path
    both = run_downstream(make_settings(initial_model=initial, name="mine", tasks=["gsm8k"]))
    assert [result.model for result in both] == ["mine", "tiny"]
    table = compare(find_results([tmp_path / "out"]))
    assert len(table.rows) == 2 and table.notes == [] and "average" not in both[0].metrics


def test_what_is_done_is_not_done_again(fake: Fake, make_settings) -> None:
    first = run_downstream(make_settings(tasks=["gsm8k"]))
    run_downstream(make_settings(tasks=["gsm8k", "winogrande"]))
    assert [call["tasks"] for call in fake.calls] == [["gsm8k"], ["winogrande"]]
    assert run_downstream(make_settings(tasks=["gsm8k"])) == first and len(fake.loaded) == 2
    run_downstream(make_settings(tasks=["gsm8k"], apply_chat_template=True))
    assert fake.calls[-1]["apply_chat_template"] is True and fake.calls[-1]["fewshot_as_multiturn"] is True


def test_a_model_that_was_trained_anew_is_evaluated_anew(fake: Fake, make_settings, tiny_dir, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_dir, tmp_path / "model")
    settings = make_settings(tasks=["gsm8k"], model_name_or_path=str(model))
    run_downstream(settings)
    run_downstream(settings)
    assert len(fake.calls) == 1
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-(2**12) :] = bytes(2**12)
    weights.write_bytes(content)
    run_downstream(settings)
    assert len(fake.calls) == 2


def test_a_trial_says_so(fake: Fake, make_settings) -> None:
    (result,) = run_downstream(make_settings(limit=8))
    assert result.warnings == ["only 8 questions of each task: a trial"] and fake.calls[0]["limit"] == 8


def test_other_processes_write_nothing(fake: Fake, make_settings, tmp_path: Path) -> None:
    fake.first_process = False
    assert run_downstream(make_settings()) == [] and not (tmp_path / "out").exists() and len(fake.calls) == 6


def test_an_adapter_goes_with_its_base(fake: Fake, make_settings, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    run_downstream(make_settings(model_name_or_path=str(tmp_path / "adapter"), tasks=["gsm8k"]))
    adapter = str(tmp_path / "adapter")
    assert {key: fake.loaded[0][key] for key in ("pretrained", "peft", "tokenizer")} == {
        "pretrained": "some/base", "peft": adapter, "tokenizer": adapter,
    }  # fmt: skip


@pytest.mark.parametrize(
    "error", [ConnectionError("Couldn't reach 'Rowan/hellaswag' on the Hub"), ValueError("Couldn't find cache for x")]
)
def test_data_that_are_not_there(fake: Fake, make_settings, error: Exception) -> None:
    fake.error = error
    with pytest.raises(DataError, match=r"hellaswag: its data set Rowan/hellaswag cannot be loaded: Couldn't .*"
                       r"lm_eval --model dummy --tasks hellaswag --limit 1.*HF_HOME"):  # fmt: skip
        run_downstream(make_settings(tasks=["hellaswag"]))


def test_other_errors_of_lm_eval_stay_as_they_are(fake: Fake, make_settings) -> None:
    fake.error = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        run_downstream(make_settings(tasks=["hellaswag"]))


def test_a_metric_that_is_missing(fake: Fake, make_settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "gsm8k", TASKS["gsm8k"]._replace(metric="exact_match,none"))
    fake.simple_evaluate = None  # type: ignore[assignment, method-assign]
    answer = answer_of("gsm8k") | {"results": {"gsm8k": {"acc,none": 1.0}}}
    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", lambda **_: answer)
    with pytest.raises(DataError, match=r"gsm8k: lm_eval gave no exact_match,none .*lm_eval 0\.4\.13"):
        run_downstream(make_settings(tasks=["gsm8k"]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ["mmlu", "gsm"]}, "tasks: 'gsm' is no task of the preset; write some of mmlu, arc_challenge"),
        ({"tasks": []}, "tasks: is empty"),
        ({"limit": 0}, "limit: 0 must be at least 1"),
        ({"include_path": "/none"}, "include_path: /none is no folder"),
    ],
)
def test_wrong_settings(make_settings, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_settings(**wrong)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_lm_eval(make_settings) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'simpo\[downstream\]'"):
        run_downstream(make_settings())


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval: pip install 'simpo[downstream]'"
)
def test_the_real_one_on_local_files(make_settings, tmp_path: Path) -> None:
    """A task file of our own in the place of winogrande; its questions lie beside it."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    rows = [{"text": f"{number} and one is", "right": number % 2} for number in range(8)]
    for split in ("train", "test"):
        (tasks / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "mine.yaml").write_text(
        f"task: winogrande\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    train: {tasks}/train.jsonl\n"
        f"    test: {tasks}/test.jsonl\ntraining_split: train\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\ndoc_to_target: right\ndoc_to_choice: ["odd", "even"]\n'
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    settings = make_settings(tasks=["winogrande"], include_path=str(tasks), batch_size=2, device="cpu")
    (result,) = run_downstream(settings)
    assert result.counts == {"winogrande": 8} and 0 <= result.metrics["winogrande"].value <= 100
    assert result.metrics["winogrande"].stderr is not None
    with pytest.raises(DataError, match=r"gsm8k: its data set openai/gsm8k \(configuration main\) cannot be loaded"):
        run_downstream(make_settings(tasks=["gsm8k"], device="cpu", batch_size=2))
