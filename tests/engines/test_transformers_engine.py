"""Sampling in process: the policy's own probabilities, and responses that depend on prompt and seed alone."""

import itertools
from typing import Any

import pytest
import torch

from simpo.engines.base import Failure, Request, Sample
from simpo.engines.transformers_engine import (
    TransformersEngine,
    load_transformers_engine,
    nucleus,
    sample_tokens,
    uniforms,
)
from simpo.errors import ModelError

PROMPTS = [[1, 5, 9, 11], [1, 7], [1, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42], [1, 8, 8]]


class Plain:
    """Decodes ids to numbers."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def engine(make_model) -> TransformersEngine:
    return TransformersEngine(make_model("llama"), Plain(), batch_size=8)  # type: ignore[arg-type]


def run(engine: TransformersEngine, requests: list[Request]) -> list[Sample]:
    found = {result.number: result.outcome for result in engine.generate(requests)}
    assert list(found) == list(range(len(requests)))
    assert not any(isinstance(outcome, Failure) for outcome in found.values())
    return list(found.values())  # type: ignore[arg-type]


def requests_of(*seeds: int, **options: Any) -> list[Request]:
    options = {"max_new_tokens": 24, "temperature": 0.8, "top_p": 0.95, "stop_ids": (2, 3)} | options
    return [Request(prompt, seed=seed, **options) for prompt in PROMPTS for seed in seeds]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3", "mistral"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_log_probs_are_those_of_a_plain_forward(make_model, family: str, temperature: float) -> None:
    """Of every token: whatever padding, shared prompts and rows that were taken out did would show here."""
    model = make_model(family)
    engine = TransformersEngine(model, Plain(), batch_size=8)  # type: ignore[arg-type]
    requests = requests_of(1, 2, temperature=temperature, stop_ids=(2, 3, *range(100, 120)))
    lengths = set()
    for request, sample in zip(requests, run(engine, requests), strict=True):
        ids = sample.token_ids
        assert ids and sample.logprobs and sample.tokens == len(ids) == len(sample.logprobs)
        lengths.add(len(ids))
        whole = torch.tensor([[*request.prompt_ids, *ids]])
        logits = model(whole).logits[0, len(request.prompt_ids) - 1 : -1].float()
        logps = logits.log_softmax(-1)
        assert torch.allclose(
            logps.gather(1, whole[0, -len(ids) :, None])[:, 0], torch.tensor(sample.logprobs), atol=2e-4
        )
        if temperature == 0:
            assert torch.equal(logits.argmax(-1), torch.tensor(ids))
    assert len(lengths) > 1 or temperature == 0


def test_a_response_depends_on_its_prompt_and_seed_alone(engine, make_model) -> None:
    requests = requests_of(13, 21, 42, 79, 100)
    together = run(engine, requests)
    assert run(engine, requests) == together
    for size, order in ((1, list(range(20))), (7, list(reversed(range(20))))):
        other = TransformersEngine(engine.model, engine.tokenizer, batch_size=size)
        found = run(other, [requests[at] for at in order])
        assert [sample.token_ids for sample in found] == [together[at].token_ids for at in order]
    texts = [sample.text for sample in together]
    assert len(set(texts)) == len(texts)


def test_all_end_tokens_end_a_response(engine) -> None:
    requests = requests_of(*range(16), max_new_tokens=40)
    ends = set()
    for sample in run(engine, requests):
        assert sample.token_ids is not None
        ended = sample.token_ids[-1] in (2, 3)
        assert not {2, 3} & set(sample.token_ids[:-1])
        assert sample.finish_reason == ("stop" if ended else "length") and (ended or sample.tokens == 40)
        assert sample.text == Plain().decode(sample.token_ids[:-1] if ended else sample.token_ids)
        ends.add(sample.token_ids[-1] if ended else None)
    assert {2, 3, None} <= ends
    free = run(engine, requests_of(1, stop_ids=()))
    assert all(sample.finish_reason == "length" and sample.tokens == 24 for sample in free)


def test_requests_of_one_batch_may_differ_in_everything(engine) -> None:
    mixed = [
        Request([1, 5], 3, 0.0, 1.0, 1, (2,)),
        Request([1, 5], 9, 0.7, 1.0, 2, ()),
        Request([1, 6, 7], 1, 1.5, 0.5, 3, (2, 3, 4)),
        Request([1, 6, 7], 12, 1.0, 1e-9, 4, (2,)),  # the most likely token alone
    ]
    together = run(engine, mixed)
    assert [sample.token_ids for sample in together] == [run(engine, [one])[0].token_ids for one in mixed]
    greedy = run(engine, [Request([1, 6, 7], 12, 0.0, stop_ids=(2,))])[0]
    assert together[3].token_ids == greedy.token_ids and together[1].tokens == 9 and together[2].tokens == 1


def test_a_model_that_only_ends(make_model) -> None:
    model = make_model("llama")
    model.lm_head = torch.nn.Linear(32, 200)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()[2] = 1000.0
    engine = TransformersEngine(model, Plain(), batch_size=8)  # type: ignore[arg-type]
    for sample in run(engine, requests_of(1, 2)):
        assert (sample.text, sample.finish_reason, sample.tokens, sample.token_ids) == ("", "stop", 1, [2])


def test_logits_that_are_not_finite_fail_their_row_alone(make_model) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[8] = float("nan")
    engine = TransformersEngine(model, Plain(), batch_size=8)  # type: ignore[arg-type]

    def rule_out(*call: Any) -> None:  # with -inf, which is no fault
        call[-1].logits[..., [8, *range(100, 200)]] = float("-inf")

    ruled_out = model.register_forward_hook(rule_out)
    outcomes = [result.outcome for result in engine.generate(requests_of(1, 2, stop_ids=()))]
    ruled_out.remove()
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [False] * 6 + [True] * 2
    assert all("NaN or infinite" in outcome.error for outcome in outcomes if isinstance(outcome, Failure))
    for outcome in outcomes[:6]:
        assert isinstance(outcome, Sample) and max(outcome.token_ids or [200]) < 100


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of counts under these probabilities; cells of fewer than 5 expected are put together."""
    expected = probabilities * counts.sum()
    small = expected < 5
    counts = torch.cat([counts[~small], counts[small].sum()[None]]).double()
    expected = torch.cat([expected[~small], expected[small].sum()[None]]).double()
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_ten_thousand_draws_have_the_models_probabilities(temperature: float, top_p: float) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.6,
    )).eval()  # fmt: skip
    engine = TransformersEngine(model, Plain(), batch_size=2500)  # type: ignore[arg-type]
    prompt = [1, 2]
    draws = run(engine, [Request(prompt, 2, temperature, top_p, seed) for seed in range(10_000)])
    counts = torch.zeros(64)
    for sample in draws:
        assert sample.token_ids is not None
        counts[sample.token_ids[0] * 8 + sample.token_ids[1]] += 1

    def next_token(ids: list[int]) -> torch.Tensor:  # by another way: sort, cut, normalise
        probabilities = (model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1)
        kept, mass = [], 0.0
        for token in probabilities.argsort(descending=True).tolist():
            if mass < top_p:
                kept.append(token)
            mass += float(probabilities[token])
        cut = torch.zeros_like(probabilities)
        cut[kept] = probabilities[kept]
        return cut / cut.sum()

    with torch.no_grad():
        first = next_token(prompt)
        joint = torch.cat([first[token] * next_token([*prompt, token]) for token in range(8)])
    assert (counts[joint == 0] == 0).all()
    assert chi_square(counts, joint) > 1e-3
    assert chi_square(counts.roll(1), joint) < 1e-9  # the test would see it


def test_inverting_the_cumulated_probabilities() -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    draws = torch.tensor([0.0, 0.2499, 0.25, 0.9999999], dtype=torch.float64)
    assert sample_tokens(probabilities.expand(4, 5).contiguous(), draws).tolist() == [1, 1, 3, 3]
    rounding = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    assert sample_tokens(rounding, torch.tensor([1 - 1e-17], dtype=torch.float64)).tolist() == [2]
    top = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64).expand(3, 3).contiguous()
    kept = sample_tokens(top, torch.tensor([0.999] * 3).double(), torch.tensor([0.0, 0.5, 0.6]).double())
    assert kept.tolist() == [1, 1, 2]


def test_the_nucleus_does_not_depend_on_how_it_is_found() -> None:
    torch.manual_seed(0)
    sharp, flat = torch.randn(20, 500) * 4, torch.zeros(3, 500)
    tied = (torch.randn(20, 500) * 4).round()
    for logits in (sharp, tied, torch.cat([sharp, flat])):
        probabilities = logits.softmax(-1)
        for share in (1e-9, 0.3, 0.95, 0.9999, 1.0):
            top_p = torch.full((len(logits),), share, dtype=torch.float64)
            expected = nucleus(probabilities, top_p, 500)
            for candidates in (1, 8, 64, 499):
                assert torch.equal(nucleus(probabilities, top_p, candidates), expected)
            mass = (probabilities * expected).double().sum(-1)
            assert (mass > share - 1e-6).all() and (expected.sum(-1) >= 1).all()
    tenth = torch.full((1,), 0.1, dtype=torch.float64)
    assert nucleus(flat.softmax(-1)[:1], tenth, 8).nonzero()[:, 1].tolist() == list(range(50))


def test_the_numbers_of_a_response_do_not_depend_on_its_length() -> None:
    request = Request([1, 2, 3], 1, seed=7)
    long = uniforms(request, 3000)
    assert all(torch.equal(uniforms(request, steps), long[:steps]) for steps in (1, 2, 15, 16, 17, 1025))
    assert not torch.equal(uniforms(Request([1, 2, 4], 1, seed=7), 9), long[:9])
    assert not torch.equal(uniforms(Request([1, 2, 3], 1, seed=8), 9), long[:9])


def test_a_batch_that_does_not_fit_is_halved(engine, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    requests = requests_of(1, 2)
    whole = run(engine, requests)
    real = engine._sample_together

    def small_memory(batch):
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return real(batch)

    monkeypatch.setattr(engine, "_sample_together", small_memory)
    assert [sample.token_ids for sample in run(engine, requests)] == [sample.token_ids for sample in whole]
    assert "batch_size" in caplog.text
    monkeypatch.setattr(engine, "_sample_together", lambda batch: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(ModelError, match="one response to a prompt of 4 tokens"):
        run(engine, requests[:1])


def test_requests_are_taken_as_they_are_needed(engine) -> None:
    taken = itertools.count()
    requests = (Request([1, 5], 1, seed=next(taken)) for _ in range(1000))
    results = engine.generate(requests)
    assert next(results).number == 0 and next(taken) == 8


def test_loading(tiny_dir: str, tmp_path) -> None:
    engine = load_transformers_engine(tiny_dir, batch_size=2, device="cpu")
    assert engine.model.dtype == torch.float32
    ids = engine.tokenizer("Hello")["input_ids"]
    (sample,) = run(engine, [Request(ids, 5, seed=3)])
    assert sample.text == engine.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
    with pytest.raises(ModelError, match="cannot load a model from"):
        load_transformers_engine(str(tmp_path), batch_size=2, device="cpu")
