"""Log-probs of the initial policy as data: equal to a live reference, kept, checked, refused."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from simpo import PreferenceTrainer, reference
from simpo.errors import ConfigError, DataError
from simpo.forward import install_packed_forward
from simpo.initial_policy import InitialPolicy
from simpo.losses import PairLogps, dpo_loss
from simpo.packing import PackedDataset, mismatched_rows
from tests import launching


@pytest.fixture
def passes(monkeypatch) -> list[range]:
    """The rows of every pass over data under the initial policy."""
    found: list[range] = []
    part = InitialPolicy._part

    def counted(self, packed, rows):
        found.append(rows)
        return part(self, packed, rows)

    monkeypatch.setattr(InitialPolicy, "_part", counted)
    return found


def _losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class _LiveReference(PreferenceTrainer):
    """DPO the expensive way: a second model in memory, asked for every pack."""

    def __init__(self, model, args, *rest):
        super().__init__(model, args, *rest, objective=lambda logps: dpo_loss(logps, beta=args.beta))
        second = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.second = install_packed_forward(second).requires_grad_(False)
        self._initial_policy = None
        self.scorer.score = self.score  # type: ignore[method-assign]

    def score(self, model, pack):
        with torch.no_grad():
            references = self.scorer.response_logps(self.second, pack)
        chosen, rejected = self.scorer.response_logps(model, pack)
        logps = PairLogps(chosen, rejected, pack["chosen_lengths"], pack["rejected_lengths"], *references)
        return logps, self.scorer.objective(logps)


def test_dpo_equals_dpo_with_a_live_reference(rows, tiny_dir, make_args) -> None:
    args = {"objective": "dpo", "beta": 0.1, "num_train_epochs": 4, "total_train_batch_size": 4, "learning_rate": 3e-3}
    ours = PreferenceTrainer(tiny_dir, make_args(**args), rows, rows)
    theirs = _LiveReference(tiny_dir, make_args(**args), rows, rows)
    for trainer in (ours, theirs):
        trainer.train()
    assert _losses(ours) == pytest.approx(_losses(theirs), abs=1e-5)
    assert min(_losses(ours)) < 0.6  # it has learnt something
    after = ours.evaluate(), theirs.evaluate()
    for key in ("eval_loss", "eval_rewards/margins", "eval_log_ratios/chosen"):
        assert after[0][key] == pytest.approx(after[1][key], abs=1e-4), key


def test_one_pass_serves_all_runs_on_the_same_data(rows, tiny_dir, make_args, passes) -> None:
    PreferenceTrainer(tiny_dir, make_args(objective="dpo", max_steps=1), rows, rows).train()
    assert passes == [range(8), range(4)]  # both sets are the same, and so is their cache; a few pairs check it
    passes.clear()
    trainer = PreferenceTrainer(tiny_dir, make_args(objective="ipo", max_steps=1), rows)
    trainer.train()
    assert passes == [range(4)]
    assert trainer.loaders.packs_of(trainer.train_dataset).references.keys() == {"ref_chosen", "ref_rejected"}


def test_kl_figures_of_simpo(rows, tiny_dir, make_args) -> None:
    trainer = PreferenceTrainer(tiny_dir, make_args(log_kl=True, max_steps=2, learning_rate=3e-3), rows, rows)
    plain = PreferenceTrainer(tiny_dir, make_args(max_steps=2, learning_rate=3e-3), rows)
    before = trainer.evaluate()
    trainer.train()
    plain.train()
    assert before["eval_log_ratios/chosen"] == pytest.approx(0, abs=1e-4)
    assert abs(trainer.evaluate()["eval_log_ratios/chosen"]) > 0.1
    assert _losses(trainer) == _losses(plain)


def test_an_adapter_is_switched_off(rows, tiny_dir, make_args) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = PreferenceTrainer(tiny_dir, make_args(objective="dpo"), rows, peft_config=config)
    adapted.compute_references()
    plain = PreferenceTrainer(tiny_dir, make_args(objective="dpo", reference_cache=None), rows)
    plain.args.reference_cache = adapted.args.reference_cache + "-2"
    plain.compute_references()
    ours, theirs = (t.loaders.packs_of(t.train_dataset).references for t in (adapted, plain))
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3)
    adapted.train()
    assert adapted.evaluate(rows)["eval_log_ratios/chosen"] != pytest.approx(0, abs=0.1)


def test_a_cache_of_another_model_is_refused(rows, tiny_dir, make_args, monkeypatch) -> None:
    PreferenceTrainer(tiny_dir, make_args(objective="dpo", max_steps=1), rows).train()
    other = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
    first = PreferenceTrainer(other, make_args(objective="dpo", max_steps=1), rows)
    assert first._initial_policy is not None
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    key = first._initial_policy.fingerprint
    PreferenceTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32),
        make_args(objective="dpo", max_steps=1),
        rows,
    ).train()
    monkeypatch.setattr("simpo.trainer.policy_fingerprint", lambda *_: key)  # as if the names were the same
    with pytest.raises(ConfigError, match=r"does not hold log-probs of this model: chosen of pair 0 has -.* delete"):
        PreferenceTrainer(other, make_args(objective="dpo", max_steps=1), rows).train()


def test_a_file_of_another_key_is_refused(tmp_path) -> None:
    arrays = {"ref_chosen": np.zeros(3, np.float32)}
    mine, other = (reference.ReferenceCache(str(tmp_path), {"policy": name}) for name in "ab")
    other.write(range(3), arrays)
    mine.path.mkdir()
    (other.path / "rows-000000000-000000003.safetensors").rename(mine.path / "rows-000000000-000000003.safetensors")
    with pytest.raises(ConfigError, match="another model or data set; delete"):
        mine.read(range(3))


def test_a_torn_file_is_computed_again(tmp_path) -> None:
    cache = reference.ReferenceCache(str(tmp_path), {})
    cache.write(range(3), {"ref_chosen": np.zeros(3, np.float32)})
    (file,) = cache.path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert cache.read(range(3)) is None


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="reference_cache: a folder with room"):
        reference.ReferenceCache(str(tmp_path / "file"), {}).write(range(1), {"ref_chosen": np.zeros(1, np.float32)})


def test_an_interrupted_pass_goes_on(rows, tiny_dir, make_args, passes, monkeypatch) -> None:
    monkeypatch.setattr(reference, "PART_ROWS", 3)
    write = reference.ReferenceCache.write

    def full_disk(self, part, arrays):
        if part.start == 3:
            raise ConfigError("no space left")
        write(self, part, arrays)

    monkeypatch.setattr(reference.ReferenceCache, "write", full_disk)
    with pytest.raises(ConfigError, match="no space left"):
        PreferenceTrainer(tiny_dir, make_args(objective="dpo"), rows).compute_references()
    assert passes == [range(3), range(3, 6)]
    passes.clear()
    monkeypatch.setattr(reference.ReferenceCache, "write", write)
    trainer = PreferenceTrainer(tiny_dir, make_args(objective="dpo"), rows)
    trainer.compute_references()
    assert passes == [range(3), range(3, 6), range(6, 8)]  # the first to check the cache
    whole = PreferenceTrainer(tiny_dir, make_args(objective="dpo", reference_cache=None), rows)
    whole.args.reference_cache = trainer.args.reference_cache + "-2"
    whole.compute_references()
    both = (t.loaders.packs_of(t.train_dataset).references for t in (trainer, whole))
    for ours, theirs in zip(*(found.values() for found in both), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_trained_policy_is_no_reference(rows, tiny_dir, make_args) -> None:
    trainer = PreferenceTrainer(tiny_dir, make_args(objective="dpo", max_steps=1), rows)
    trainer.train()
    others = [dict(row, chosen_ids=list(row["chosen_ids"])[::-1]) for row in trainer.train_dataset]
    with pytest.raises(ConfigError, match=r"this policy is trained already and .* run `simpo reference CONFIG`"):
        trainer.evaluate(Dataset.from_list(others))


def test_a_second_training_does_not_begin_with_the_initial_policy(rows, tiny_dir, make_args) -> None:
    trainer = PreferenceTrainer(tiny_dir, make_args(objective="dpo", max_steps=1), rows)
    trainer.train()
    trainer.train()  # the log-probs of these rows are known
    trainer.train_dataset = trainer.train_dataset.select(range(5))
    with pytest.raises(ConfigError, match="this policy is trained already"):
        trainer.train()


def test_an_evaluation_set_may_be_called_train(rows, tiny_dir, make_args) -> None:
    few = {"train": rows.select(range(3)), "other": rows.select(range(4))}
    trainer = PreferenceTrainer(tiny_dir, make_args(objective="dpo", max_steps=1), rows, few)
    trainer.train()
    assert trainer.train_report is not None and trainer.train_report.kept == len(rows)
    metrics = trainer.evaluate()
    assert {"eval_train_loss", "eval_other_loss"} <= metrics.keys()


def test_columns_of_ones_own(rows, tiny_dir, make_args, passes) -> None:
    first = PreferenceTrainer(tiny_dir, make_args(objective="dpo", max_steps=2), rows)
    first.train()
    known = first.loaders.packs_of(first.train_dataset).references
    passes.clear()
    data = first.train_dataset
    for name, values in known.items():
        data = data.add_column(name, values.tolist())
    second = PreferenceTrainer(tiny_dir, make_args(objective="dpo", max_steps=2), data)
    second.train()
    assert passes == [] and _losses(second) == _losses(first)


def test_a_cache_depends_on_all_that_matters(make_model, rows, tiny_dir, make_args) -> None:
    data = PreferenceTrainer(tiny_dir, make_args(), rows).train_dataset
    model = make_model("llama")
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.lm_head.weight.mul_(1.01)
    assert reference.policy_fingerprint(model) == reference.policy_fingerprint(copy.deepcopy(model))
    assert reference.policy_fingerprint(model) != reference.policy_fingerprint(changed)
    base = {"policy": "p", "pairs": data, "dtype": torch.float32, "mismatched": None}
    keys = [
        reference.cache_key(**base | change)
        for change in (
            {}, {"policy": "q"}, {"pairs": data.select(range(7))}, {"dtype": torch.bfloat16},
            {"mismatched": {"seed": 1}},
            {"pairs": data.select([1, 0, *range(2, 8)])},
        )
    ]  # fmt: skip
    assert len({str(key) for key in keys}) == len(keys)
    assert reference.cache_key(**base | {"pairs": data.select(range(8))}) == keys[0]


def test_files_name_a_policy_by_what_is_in_them(tiny_dir, tmp_path) -> None:
    import shutil

    shutil.copytree(tiny_dir, tmp_path / "copy")
    assert reference.policy_fingerprint(tiny_dir) == reference.policy_fingerprint(str(tmp_path / "copy"))
    weights = next((tmp_path / "copy").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert reference.policy_fingerprint(tiny_dir) != reference.policy_fingerprint(str(tmp_path / "copy"))


def test_a_hub_model_is_named_by_its_commit(tmp_path, monkeypatch) -> None:
    commit = "0123456789" * 4
    repository = tmp_path / "models--org--name"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text('{"auto_map": {"AutoConfig": "code.Config"}}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert reference.policy_fingerprint("org/name") == f"org/name@{commit}"


def test_how_a_policy_is_loaded_is_a_part_of_its_name(tiny_dir) -> None:
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    ways = [({}, None), ({"dtype": "bfloat16"}, None), ({}, four), ({}, BitsAndBytesConfig(load_in_8bit=True))]
    names = [reference.policy_fingerprint(tiny_dir, *way) for way in ways]
    assert len(set(names)) == len(ways)
    assert reference.policy_fingerprint(tiny_dir, {"revision": "main"}) == names[0]
    secret = reference.policy_fingerprint(tiny_dir, {"token": "hf_secret"})
    assert "hf_secret" not in secret


def test_large_and_rounded_weights_have_a_name() -> None:
    large = torch.nn.Linear(32000, 1024, bias=False, dtype=torch.bfloat16)  # more elements than float32 can count
    assert reference.policy_fingerprint(large)
    small = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        small.weight.fill_(0.5)
    assert reference.policy_fingerprint(small) != reference.policy_fingerprint(copy.deepcopy(small).bfloat16())


def test_rounded_weights_are_compared_with_patience(rows, tiny_dir, make_args, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("simpo.initial_policy.fill_references", lambda *_, exact, **__: seen.append(exact))
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=dtype)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        PreferenceTrainer(model, make_args(objective="dpo"), rows, peft_config=config).compute_references()
    assert seen == [True, False]


def test_an_adapter_that_takes_from_its_base_stays_on(rows, tiny_dir, make_args) -> None:
    def references(**changes):
        config = changes and LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **changes)
        args = make_args(objective="dpo")
        args.reference_cache += str(changes)
        trainer = PreferenceTrainer(tiny_dir, args, rows, peft_config=config or None)
        trainer.compute_references()
        return trainer.loaders.packs_of(trainer.train_dataset).references["ref_chosen"]

    plain = references()
    np.testing.assert_allclose(references(init_lora_weights="pissa"), plain, atol=1e-2)
    np.testing.assert_allclose(references(init_lora_weights=True), plain, atol=1e-2)


@pytest.mark.multiprocess
def test_references_before_training_leave_replicas_in_step(tmp_path) -> None:
    out = tmp_path / "out.json"
    settings = ("per_device_train_batch_size=2", 'objectives=["dpo"]')
    launching.torchrun(launching.WORKERS / "objectives.py", str(out), *settings, "references_first=true")
    assert json.loads(out.read_text())["engine"] == "DDP x 2"


@pytest.mark.multiprocess
def test_memory_is_that_of_simpo(tmp_path) -> None:
    def peak(*words: str) -> float:
        printed = launching.run([sys.executable, str(launching.WORKERS / "peak.py"), *words])
        return float(printed.rsplit("peak", 1)[1].split()[0])

    simpo = peak("simpo", str(tmp_path))
    assert peak("dpo", str(tmp_path)) < 1.05 * simpo
    assert peak("simpo", str(tmp_path), "--second-model") > 1.07 * simpo  # what a live reference would cost


# KTO


def test_mismatched_rows_have_another_prompt() -> None:
    prompts = [[1], [1], [1], [2], [3], [2]]
    rows = [{"prompt_ids": prompt, "chosen_ids": [9], "rejected_ids": []} for prompt in prompts]
    for seed in range(20):
        partners = mismatched_rows(rows, seed)
        assert all(prompts[row] != prompts[partner] for row, partner in enumerate(partners))
    distinct = [dict(row, prompt_ids=[number]) for number, row in enumerate(rows)]
    assert sorted(mismatched_rows(distinct, 0)) == list(range(6))
    assert mismatched_rows(distinct, 0).tolist() != mismatched_rows(distinct, 1).tolist()
    with pytest.raises(DataError, match="two different prompts"):
        mismatched_rows(rows[:3], 0)


def test_mismatched_pairs_fit() -> None:
    rows = [
        {"prompt_ids": [1, 1, 1, 1], "chosen_ids": [5, 5, 5, 5], "rejected_ids": [6, 6]},
        {"prompt_ids": [2, 2], "chosen_ids": [7, 7, 7, 7, 7], "rejected_ids": [8]},
    ]
    packed = PackedDataset(rows, max_length=6)
    packed.partners = np.array([1, 0])
    from simpo.batching import MicroBatch

    pack = packed[MicroBatch((0, 1))]["mismatched"]
    assert pack["input_ids"].tolist() == [[1, 1, 1, 1, 7, 7, 2, 2, 6, 6]]  # even rows take chosen, odd ones rejected
    assert pack["chosen_lengths"].tolist() == [2, 2] and pack["rejected_lengths"].tolist() == [0, 0]


def test_kto_takes_rows_of_one_response(golden, tiny_dir, make_args) -> None:
    rows = []
    for number, row in enumerate(golden["rows"]):
        side = "chosen" if number % 2 else "rejected"
        rows.append({"prompt": row[side][:-1], "completion": row[side][-1:], "label": side == "chosen"})
    args = {"num_train_epochs": 2, "total_train_batch_size": 4, "learning_rate": 3e-3}
    trainer = PreferenceTrainer(tiny_dir, make_args(objective="kto", **args), rows, rows)
    trainer.train()
    assert trainer.train_report is not None and trainer.train_report.kept == len(rows)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] < 0.5 and np.isfinite(metrics["eval_rewards/chosen"])
    assert "eval_rewards/margins" not in metrics  # no row has both
    predictions = trainer.predict(trainer.eval_dataset).predictions
    assert np.isnan(predictions["logps/chosen"]).tolist() == [number % 2 == 0 for number in range(len(rows))]
    with pytest.raises(DataError, match="objective: kto"):
        PreferenceTrainer(tiny_dir, make_args(objective="dpo", **args), rows)
    with pytest.raises(DataError, match="one response only"):
        PreferenceTrainer(tiny_dir, make_args(), trainer.train_dataset).train()
