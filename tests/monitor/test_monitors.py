"""What the monitors measure, write and log, and that a run does not notice them."""

import json
import random

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from simpo.analysis.pairs import read_pairs
from simpo.errors import ConfigError
from simpo.metrics import PAIR_METRICS
from simpo.monitor.probe import choose_sample
from simpo.repetition import repeated_share
from simpo.settings import read_settings
from tests.monitor.conftest import END, preference_pairs

TRAIN, HELD_OUT = preference_pairs(64), preference_pairs(40, seed=99)
SHORT = {"total_train_batch_size": 8, "monitor_pairs": 10}


def monitored(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "monitor/logps/chosen" in entry]


def lines(folder, name) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / "monitor" / name).read_text().splitlines()]


def plain_logps(model, pair, side) -> torch.Tensor:
    """Of each answer token, from the model's ordinary forward."""
    ids = torch.tensor([pair["prompt_ids"] + pair[side]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits.float().log_softmax(-1)[0]
    start = len(pair["prompt_ids"])
    return logps[start - 1 : -1].gather(1, ids[0, start:, None]).squeeze(1)


def test_numbers_are_those_of_a_plain_computation(make_trainer, spoken, tmp_path) -> None:
    """10 of 40 held-out pairs, before and after 4 steps, from the model's own logits."""
    trainer = make_trainer(TRAIN, HELD_OUT, max_steps=4, learning_rate=3e-3, **SHORT)
    trainer.train()
    rows = np.linspace(0, 39, 10).round().astype(int).tolist()
    found = []
    for model in (spoken, trainer.model.eval()):
        sides = {
            side: [plain_logps(model, HELD_OUT[row], f"{side}_ids") for row in rows] for side in ("chosen", "rejected")
        }
        means = {side: np.array([float(one.mean()) for one in values]) for side, values in sides.items()}
        ends = np.exp([float(one[-1]) for one in sides["chosen"]])
        sums = {side: np.array([float(one.sum()) for one in values]) for side, values in sides.items()}
        found.append((means["chosen"], means["rejected"], ends, sums))
    (chosen0, rejected0, _, sums0), (chosen, rejected, ends, sums) = found
    last = monitored(trainer)[-1]
    drop, gain = (chosen0 - chosen).mean(), ((chosen - rejected) - (chosen0 - rejected0)).mean()
    expected = {
        "monitor/logps/chosen": chosen.mean(), "monitor/logps/rejected": rejected.mean(),
        "monitor/chosen_drop": drop, "monitor/margin_gain": gain, "monitor/drop_per_margin": drop / gain,
        "monitor/chosen_fell": (chosen < chosen0).mean(), "monitor/accuracy": (chosen > rejected).mean(),
        "monitor/end_probability": ends.mean(),
    }  # fmt: skip
    assert {key: last[key] for key in expected} == pytest.approx(expected, abs=1e-4)
    assert abs(drop) > 0.01
    scores = read_pairs(tmp_path / "out" / "monitor" / "probe-000004.parquet")
    assert scores.row.tolist() == rows
    np.testing.assert_allclose(scores.chosen, sums["chosen"], atol=1e-4)
    np.testing.assert_allclose(scores.ref_rejected, sums0["rejected"], atol=1e-4)
    assert scores.chosen_lengths.tolist() == [len(HELD_OUT[row]["chosen_ids"]) for row in rows]


def test_answers_are_the_most_likely_ones(make_trainer, spoken, tmp_path) -> None:
    """Against a loop without a cache; the model's own repetition penalty does not enter."""
    longer = [
        pair | {"prompt_ids": [1, *[11] * (row % 7), *pair["prompt_ids"][1:]]} for row, pair in enumerate(HELD_OUT)
    ]
    trainer = make_trainer(TRAIN, longer, max_steps=1, monitor_max_new_tokens=12, **SHORT)
    trainer.model.generation_config.repetition_penalty = 5.0
    trainer.train()
    assert trainer.model.generation_config.repetition_penalty == 5.0
    first = [row for row in lines(tmp_path, "generations.jsonl") if row["step"] == 0]
    assert len(first) == 4
    for row in first:
        prompt = [1, *(int(word[1:]) for word in row["prompt"].split())]  # 1 is special here, and left out of texts
        ids, entropies = [], []
        while len(ids) < 12 and END not in ids:
            with torch.no_grad():
                logits = spoken(input_ids=torch.tensor([prompt + ids])).logits[0, -1].double()
            entropies.append(float(torch.distributions.Categorical(logits=logits).entropy()))
            ids.append(int(logits.argmax()))
        assert (row["tokens"], row["stopped"]) == (len(ids), ids[-1] == END)
        assert row["repeated"] == repeated_share(ids)
        assert row["entropy"] == pytest.approx(sum(entropies) / len(ids), abs=1e-4)
        words = trainer.processing_class.decode(ids, skip_special_tokens=True)
        assert row["response"] == words
    assert any(row["stopped"] for row in first)


def weights_of(trainer) -> list[torch.Tensor]:
    trainer.train()
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


class Dropout(TrainerCallback):
    """Draws from every global generator at each step, as dropout would."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def on_step_end(self, *_, **__) -> None:
        """Called by transformers."""
        self.drawn += [random.random(), float(np.random.rand()), float(torch.rand(()))]


@pytest.mark.parametrize("evaluates", [True, False])
def test_a_run_does_not_notice(make_trainer, evaluates) -> None:
    """The same weights and the same random numbers, bit for bit, with dropout."""
    found = []
    for monitor in ("off", "warn", "stop"):
        options = {"eval_strategy": "steps", "eval_steps": 2} if evaluates else {}
        torch.manual_seed(5)
        trainer = make_trainer(
            TRAIN, HELD_OUT if evaluates else None, monitor=monitor, disable_dropout=False, num_train_epochs=2,
            **SHORT, **options,
        )  # fmt: skip
        trainer.model.config.attention_dropout = 0.2
        for layer in trainer.model.model.layers:
            layer.self_attn.attention_dropout = 0.2
        draws = Dropout()
        trainer.add_callback(draws)
        found.append((weights_of(trainer), draws.drawn))
        assert bool(monitored(trainer)) == (monitor != "off")
    for weights, drawn in found[1:]:
        assert drawn == found[0][1]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights, found[0][0], strict=True))


def test_it_looks_at_evaluations(make_trainer, tmp_path) -> None:
    trainer = make_trainer(TRAIN, HELD_OUT, eval_strategy="steps", eval_steps=3, eval_on_start=True, **SHORT)
    trainer.train()
    assert [entry["step"] for entry in monitored(trainer)] == [0, 3, 6, 8]
    names = sorted(path.name for path in (tmp_path / "out" / "monitor").iterdir())
    assert names == ["generations.jsonl", *(f"probe-{step:06d}.parquet" for step in (0, 3, 6, 8))]
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == list(range(1, 9))
    trainer.evaluate()  # after training: nobody looks
    assert len(monitored(trainer)) == 4


def test_it_looks_ten_times_without_evaluations(make_trainer) -> None:
    trainer = make_trainer(TRAIN, num_train_epochs=5, monitor_prompts=0, logging_steps=7, **SHORT)
    trainer.train()
    assert [entry["step"] for entry in monitored(trainer)] == list(range(0, 41, 4))
    # a look in the step of a log line does not swallow it
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [7, 14, 21, 28, 35]


def test_frequent_evaluations_are_not_all_looked_at(make_trainer) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 1, "num_train_epochs": 6, "monitor_prompts": 0}
    trainer = make_trainer(TRAIN, HELD_OUT, **SHORT, **options)
    trainer.train()
    assert [entry["step"] for entry in monitored(trainer)] == list(range(0, 49, 4))


def test_no_evaluation_set_is_a_note(make_trainer, warnings_of, tmp_path) -> None:
    make_trainer(TRAIN, max_steps=1, **SHORT).train()
    assert warnings_of() == {"no_held_out_pairs": "note"}
    (row,) = lines(tmp_path, "warnings.jsonl")
    assert row.keys() == {"step", "name", "level", "text", "advice"} and "10 pairs that are trained on" in row["text"]


def test_off_leaves_nothing(make_trainer, tmp_path) -> None:
    trainer = make_trainer(TRAIN, HELD_OUT, max_steps=2, monitor="off", **SHORT)
    trainer.train()
    assert monitored(trainer) == [] and not (tmp_path / "out" / "monitor").exists()


def test_a_resumed_run_remembers_the_start(make_trainer, tmp_path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4, "learning_rate": 3e-3, "monitor_prompts": 2, **SHORT}
    whole = make_trainer(TRAIN, HELD_OUT, eval_strategy="steps", eval_steps=2, **options)
    whole.train()
    resumed = make_trainer(TRAIN, HELD_OUT, eval_strategy="steps", eval_steps=2, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    drop = "monitor/chosen_drop"
    assert [entry[drop] for entry in monitored(resumed)] == pytest.approx([entry[drop] for entry in monitored(whole)])
    assert [entry["step"] for entry in monitored(resumed)] == [0, 2, 4, 6, 8]
    steps = [row["step"] for row in lines(tmp_path, "generations.jsonl")]
    assert steps == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]  # each once, though 6 and 8 came twice


def test_a_resumed_run_that_lost_its_start_says_so(make_trainer, warnings_of, tmp_path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 2, **SHORT}
    make_trainer(TRAIN, HELD_OUT, **options).train()
    (tmp_path / "out" / "monitor" / "probe-000000.parquet").unlink()
    make_trainer(TRAIN, HELD_OUT, **options).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert warnings_of() == {"start_unknown": "note"}
    now = read_pairs(tmp_path / "out" / "monitor" / "probe-000008.parquet")
    at_4 = read_pairs(tmp_path / "out" / "monitor" / "probe-000004.parquet")
    np.testing.assert_array_equal(now.ref_chosen, at_4.chosen)


def test_a_warning_is_said_once(make_trainer, tmp_path) -> None:
    trainer = make_trainer(TRAIN, HELD_OUT, num_train_epochs=3, learning_rate=3e-2, **SHORT)
    trainer.train()
    said = [(row["name"], row["level"]) for row in lines(tmp_path, "warnings.jsonl")]
    assert ("chosen_falls", "stop") in said and len(said) == len(set(said))


def test_every_objective_is_watched(make_trainer) -> None:
    for objective in ("dpo", "kto", "orpo"):
        trainer = make_trainer(TRAIN, HELD_OUT, max_steps=2, objective=objective, monitor_prompts=0, **SHORT)
        trainer.train()
        assert 0 <= monitored(trainer)[-1]["monitor/accuracy"] <= 1


def test_an_adapter_answers_too(spoken, make_args, make_trainer, tmp_path) -> None:
    from peft import LoraConfig, get_peft_model

    base = make_trainer(TRAIN, HELD_OUT, max_steps=3, learning_rate=3e-2, gradient_checkpointing=True, **SHORT)
    adapted = get_peft_model(base.model, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear",
                                                    exclude_modules=["lm_head"]))  # fmt: skip
    trainer = type(base)(adapted, base.args, base.train_dataset, base.eval_dataset, base.processing_class)
    trainer.train()
    rows = lines(tmp_path, "generations.jsonl")
    assert {row["step"] for row in rows} == {0, 1, 2, 3}
    assert [row["entropy"] for row in rows][:4] != [row["entropy"] for row in rows][-4:]


def test_a_sample_is_spread_evenly_and_the_same_each_time() -> None:
    rows = preference_pairs(30)
    rows[29] = {**rows[29], "rejected_ids": []}
    sample = choose_sample(rows, None, 5)
    assert sample is not None and sample.row.tolist() == [0, 7, 14, 21, 28] and not sample.held_out
    assert choose_sample(rows, {"a": rows[:3], "b": rows}, 5).row.tolist() == [0, 1, 2]
    assert choose_sample([rows[29]], None, 5) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("off", "off"), ("on", "warn"), ("warn", "warn"), ("stop", "stop"), ("false", "off"), ("'off'", "off")],
)
def test_a_bare_off_is_off(tmp_path, text, expected) -> None:
    """YAML 1.1 takes off for false."""
    path = tmp_path / "run.yaml"
    path.write_text(f"model_name_or_path: a\ndataset_mixer: {{b: 1.0}}\nuse_cpu: true\nmonitor: {text}\n")
    assert read_settings(path).training.monitor == expected
    path.write_text("model_name_or_path: a\ndataset_mixer: {b: 1.0}\nuse_cpu: true\n")
    assert read_settings(path, [f"--monitor={text}"]).training.monitor == expected


def test_settings_out_of_bounds(make_args) -> None:
    for name, value in (("monitor", "loud"), ("monitor_pairs", 0), ("monitor_prompts", -1)):
        with pytest.raises(ConfigError, match=name):
            make_args(**{name: value})
    assert make_args(monitor=False).monitor == "off" and make_args(monitor=True).monitor == "warn"


def test_log_lines_keep_their_names(make_trainer) -> None:
    trainer = make_trainer(TRAIN, HELD_OUT, max_steps=1, **SHORT)
    trainer.train()
    assert len({*monitored(trainer)[-1]} - {"step", "epoch"}) <= len(PAIR_METRICS) + 2
    assert all(key.startswith("monitor/") for key in {*monitored(trainer)[-1]} - {"step", "epoch"})
