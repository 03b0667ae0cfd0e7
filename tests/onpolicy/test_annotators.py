"""Scoring models through the real loading code: tiny random weights, saved and loaded like those of the hub."""

import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DebertaV2Config,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from simpo.errors import ConfigError, ModelError
from simpo.onpolicy.annotate import AnnotateSettings, score_all
from simpo.onpolicy.annotators.base import Item, batches_by_length
from simpo.onpolicy.annotators.kinds import KINDS, read_annotators
from simpo.onpolicy.annotators.pairrm import MARKS, PairRanker, PairRM
from simpo.onpolicy.annotators.reward import RewardModel
from simpo.onpolicy.binarize import BinarizeSettings
from tests.onpolicy.made import import_file

CPU = torch.device("cpu")
RESPONSES = ["Yes.", "No, and here is a much longer answer that goes on for a while.", "Perhaps it is so", "x", ""]
ITEMS = [
    Item("p0", 0, [{"role": "user", "content": "Is it so?"}], RESPONSES),
    Item("p1", 1, "A prompt that is a text, and a little longer than the other one", RESPONSES[:3]),
    Item("p2", 2, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}], RESPONSES[1:4]),
]
CODE = Path(__file__).parent / "armo_shaped" / "modeling_custom.py"


def spread(model: Any, seed: int = 0) -> Any:
    """Random weights that are large enough to matter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model.eval()


def shape(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 512, **changes,
    }  # fmt: skip


@pytest.fixture
def reward_dir(tmp_path, tiny_tokenizer) -> str:
    config = LlamaConfig(**shape(tiny_tokenizer), num_labels=1, pad_token_id=tiny_tokenizer.pad_token_id)
    spread(LlamaForSequenceClassification(config)).save_pretrained(tmp_path / "rm")
    tiny_tokenizer.save_pretrained(tmp_path / "rm")
    return str(tmp_path / "rm")


@pytest.fixture
def armo_dir(tmp_path, tiny_tokenizer, monkeypatch) -> str:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(transformers.models.llama.modeling_llama, "LLAMA_INPUTS_DOCSTRING", "", raising=False)
    custom = import_file(CODE)
    header = tiny_tokenizer("<|start_header_id|>assistant<|end_header_id|>", add_special_tokens=False)["input_ids"]
    config = LlamaConfig(
        **shape(tiny_tokenizer),
        pad_token_id=tiny_tokenizer.pad_token_id,
        num_objectives=5,
        header_ids=header,
        num_labels=1,
    )
    config.auto_map = {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    spread(custom.LlamaForRewardModelWithGating(config)).save_pretrained(tmp_path / "armo")
    tiny_tokenizer.save_pretrained(tmp_path / "armo")
    shutil.copy(CODE, tmp_path / "armo")
    monkeypatch.undo()
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return str(tmp_path / "armo")


@pytest.fixture
def pairrm_dir(tmp_path, tiny_dir) -> str:
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    config = DebertaV2Config(
        **shape(tokenizer), relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
        position_buckets=16, share_att_key=True, norm_rel_ebd="layer_norm", type_vocab_size=0, n_tasks=1, drop_out=0.05,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    spread(PairRanker(config)).save_pretrained(tmp_path / "pairrm")
    tokenizer.save_pretrained(tmp_path / "pairrm")
    return str(tmp_path / "pairrm")


def make(kind: str, **settings: Any) -> Any:
    (entry,) = read_annotators({"it": {"kind": kind, **settings}}).values()
    return RewardModel(entry, CPU) if kind == "reward_model" else PairRM(entry, CPU)


def one_by_one(annotator: Any) -> list[list[float]]:
    """Every response scored in a batch of its own, without padding."""
    return [
        [annotator.score([Item(i.id, i.row, i.prompt, [text])])[0].scores[0] for text in i.responses] for i in ITEMS
    ]


def close(one: list[list[float]], other: list[list[float]]) -> bool:
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-4) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("max_batch_tokens", [100, 16384])
def test_reward_model(reward_dir: str, max_batch_tokens: int) -> None:
    annotator = make("reward_model", model=reward_dir, max_batch_tokens=max_batch_tokens)
    scores = [scored.scores for scored in annotator.score(ITEMS)]
    assert close(scores, one_by_one(annotator)) and len(set(scores[0])) == 5
    model = LlamaForSequenceClassification.from_pretrained(reward_dir).eval()
    for item, of_item in zip(ITEMS, scores, strict=True):
        for text, score in zip(item.responses, of_item, strict=True):
            ids = annotator.tokenizer.apply_chat_template([*item.messages, {"role": "assistant", "content": text}])
            plain = model(torch.tensor([ids["input_ids"]])).logits.item()
            assert score == pytest.approx(plain, abs=1e-4)


def test_without_a_padding_token(reward_dir: str) -> None:
    expected = [scored.scores for scored in make("reward_model", model=reward_dir).score(ITEMS)]
    config = LlamaConfig.from_pretrained(reward_dir)
    config.pad_token_id = None
    config.save_pretrained(reward_dir)
    annotator = make("reward_model", model=reward_dir)
    assert annotator.model.config.pad_token_id is None
    assert close([scored.scores for scored in annotator.score(ITEMS)], expected)


def test_one_bos(reward_dir: str) -> None:
    annotator = make("reward_model", model=reward_dir)
    bos = annotator.tokenizer.bos_token_id
    assert all(ids[0] == bos and ids.count(bos) == 1 for ids in annotator.encode(ITEMS[0]))
    template = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    twice = make("reward_model", model=reward_dir, chat_template=template)
    assert all(ids[0] == bos and ids.count(bos) == 1 for ids in twice.encode(ITEMS[0]))


def test_too_long_has_no_score(reward_dir: str) -> None:
    annotator = make("reward_model", model=reward_dir, max_length=30)
    (scored,) = annotator.score([Item("p", 0, "Hi", ["Yes.", "word " * 60])])
    assert scored.scores[0] is not None and scored.scores[1] is None
    assert "response 1: " in scored.problems[0] and "above max_length 30" in scored.problems[0]


def test_a_template_that_fails_on_a_row(reward_dir: str) -> None:
    template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template += "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    found = score_all("rm", make("reward_model", model=reward_dir, chat_template=template), ITEMS)
    assert found[2].scores == [None] * 3 and found[2].problems == ["TemplateError: no system"]
    assert all(score is not None for scored in found[:2] for score in scored.scores)


def test_armo_rm(armo_dir: str, capsys) -> None:
    annotator = make("reward_model", model=armo_dir, trust_remote_code=True)
    assert "running Python code that comes with" in capsys.readouterr().out
    assert type(annotator.model).__name__ == "LlamaForRewardModelWithGating"
    scores = [scored.scores for scored in annotator.score(ITEMS)]
    assert close(scores, one_by_one(annotator)) and len(set(scores[0])) == 5
    (ids,) = annotator.encode(Item("p", 0, ITEMS[0].prompt, ["Yes."]))
    assert scores[0][0] == pytest.approx(annotator.model(torch.tensor([ids])).score.item(), abs=1e-4)


def test_armo_rm_needs_to_be_trusted(armo_dir: str) -> None:
    with pytest.raises(ModelError, match="trust_remote_code: true"):
        make("reward_model", model=armo_dir)


def test_a_language_model_is_no_reward_model(tmp_path, tiny_dir: str) -> None:
    assert AutoModelForCausalLM.from_pretrained(tiny_dir) is not None
    with pytest.raises(ModelError, match=r"weights score.weight are not in the checkpoint; name a model of this kind"):
        make("reward_model", model=tiny_dir)


def test_pairrm_in_bfloat16(pairrm_dir: str) -> None:
    exact, rounded = (make("pairrm", model=pairrm_dir, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert rounded.model.dtype == torch.bfloat16
    for one, other in zip(exact.score(ITEMS), rounded.score(ITEMS), strict=True):
        assert torch.allclose(torch.tensor(one.scores), torch.tensor(other.scores), atol=0.1)


def test_several_labels(tmp_path, tiny_tokenizer) -> None:
    config = LlamaConfig(**shape(tiny_tokenizer), num_labels=3, pad_token_id=tiny_tokenizer.pad_token_id)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="gives 3 numbers for a text"):
        make("reward_model", model=str(tmp_path)).score(ITEMS)


@pytest.mark.parametrize("max_batch_tokens", [100, 16384])
def test_pairrm(pairrm_dir: str, max_batch_tokens: int) -> None:
    annotator = make("pairrm", model=pairrm_dir, max_batch_tokens=max_batch_tokens)
    scores = [scored.scores for scored in annotator.score(ITEMS)]
    with torch.inference_mode():
        for item, of_item in zip(ITEMS, scores, strict=True):
            better = torch.zeros(len(item.responses), len(item.responses))
            for i, first in enumerate(item.responses):
                for j, second in enumerate(item.responses):
                    if i != j:
                        ids, marks = annotator.encode(item.transcript, first, second)
                        ids = torch.tensor([ids])
                        assert [ids[0, mark].item() for mark in marks] == annotator._mark_ids
                        better[i, j] = annotator.model(ids, torch.ones_like(ids), torch.tensor([marks])).item()
            assert torch.allclose(torch.tensor(of_item), (better - better.T).mean(dim=1), atol=1e-4)
    assert sum(scores[0]) == pytest.approx(0, abs=1e-4) and len(set(scores[0])) == 5


def test_pairrm_reads_as_published(pairrm_dir: str) -> None:
    annotator = make("pairrm", model=pairrm_dir, max_prompt_length=20, max_total_length=60)
    ids, marks = annotator.encode("question " * 50, "first " * 50, "second " * 50)
    assert len(ids) == 60 and marks[0] < 3 and marks[1] - marks[0] == 20 and marks[2] - marks[1] == 20
    assert ITEMS[2].transcript == "SYSTEM: Be brief.\n\nUSER: Why?" and ITEMS[0].transcript == "Is it so?"


def test_marks_in_a_text_do_not_move_the_marks(pairrm_dir: str) -> None:
    annotator = make("pairrm", model=pairrm_dir)
    ids, marks = annotator.encode("say <|candidate1|><|source|>", "<|candidate2|>", "b")
    assert [ids[mark] for mark in marks] == annotator._mark_ids and marks == sorted(marks)
    assert ids.count(annotator._mark_ids[1]) == 2


def test_another_model_is_no_pairrm(reward_dir: str) -> None:
    with pytest.raises(
        ModelError, match=r"not in the checkpoint; name a model of this kind, e.g. llm-blender/PairRM-hf"
    ):
        make("pairrm", model=reward_dir)
    with pytest.raises(ModelError, match="no/such/place: no such directory"):
        make("pairrm", model="/no/such/place")


def test_every_setting_is_described() -> None:
    page = (Path(__file__).parents[2] / "docs" / "on-policy.md").read_text()
    parts = dict(re.findall(r"^(?:##|###) (.+?)\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    described = {"Annotate": AnnotateSettings, "Binarize": BinarizeSettings}
    described |= {f"`kind: {kind}`": owner for kind, owner in KINDS.items()}
    for heading, owner in described.items():
        names = {item.name for item in fields(owner)}
        assert names <= set(re.findall(r"`(\w+)(?:: [^`]*)?`", parts[heading])), heading


def test_batches_hold_all_and_fit() -> None:
    lengths = [5, 90, 3, 30, 30, 200, 1]
    found = list(batches_by_length(lengths, 100))
    assert sorted(index for batch in found for index in batch) == list(range(7)) and found[0] == [5]
    assert all(len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 100 for batch in found)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "annotators: is empty"),
        (
            {"a": {"model": "x"}},
            "annotators.a: write a mapping with kind, one of reward_model, pairrm, judge, function",
        ),
        ({"a": {"kind": "reward"}}, "annotators.a: kind: reward is unknown: did you mean 'reward_model'"),
        ({"a": {"kind": "reward_model"}}, "annotators.a: model is missing; write text"),
        (
            {"a": {"kind": "reward_model", "model": "m", "trust_code": True}},
            "annotators.a: unknown setting 'trust_code'; did you",
        ),
        ({"a": {"kind": "function", "function": "f"}}, "annotators.a: function: 'f' must be module:function"),
        ({"a": {"kind": "judge", "model": "m", "base_urls": "u", "api_key_env": "NO_KEY_X"}}, "NO_KEY_X is not set"),
        ({"a": {"kind": "pairrm", "max_batch_tokens": 0}}, "annotators.a: max_batch_tokens: 0 must be at least 1"),
    ],
)
def test_settings_of_annotators(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_annotators(value)
