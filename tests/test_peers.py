"""Losses and gradients against TRL's own trainers: the same weights, the same tokens, one optimizer step.

TRL runs padded rows with its own code from rows to loss. Ours is `PreferenceTrainer` from its data loader to the
optimizer: with SGD at learning rate 1 the weights move by minus the gradient, so that is what is compared.
"""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from simpo import PreferenceConfig, PreferenceTrainer

# rounding of float32: gradients have norms of 1 to 20
LOSS, GRADIENT = {"abs": 1e-4, "rel": 1e-5}, {"atol": 1e-5, "rtol": 1e-4}

TEXTS = [
    ("Name a tree.", "An oak, which may live for a thousand years.", "Tree."),
    ("What is rain?", "Water that falls.", "Rain is a kind of weather that people often talk about."),
    ("Two plus two?", "Four.", "Five, I think."),
    ("Where do swifts sleep?", "In the air, for months at a time.", "In nests like other birds do."),
    ("Why is the sky blue?", "Air scatters short waves more than long ones.", "It mirrors the sea."),
    ("Say hello in French.", "Bonjour!", "Hola! That is how they greet one another there."),
]
KEYS = ("prompt_ids", "chosen_ids", "rejected_ids")
ROWS = [{"prompt": f"{prompt}\n", "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in TEXTS]


@pytest.fixture(scope="module")
def initial(tiny_dir) -> Any:
    """The initial policy, surer of itself than it should be."""
    model = AutoModelForCausalLM.from_pretrained(tiny_dir).eval()
    _change(model, 2.0, 0.0)
    return model


@pytest.fixture(scope="module")
def policy(initial) -> Any:
    """A policy that is several nats a response away from it, so that KTO's estimate of the KL is above 0."""
    model = copy.deepcopy(initial)
    _change(model, 0.6, 0.03)
    return model


@torch.no_grad()
def _change(model: Any, factor: float, noise: float) -> None:
    draw = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.mul_(factor).add_(noise * torch.randn(weight.shape, generator=draw))


class Peer:
    """TRL's trainer of some name around a copy of a policy."""

    def __init__(
        self, name: str, settings: dict[str, Any], rows: list[dict[str, Any]], policy: Any, tokenizer: Any,
        folder: Any, reference: Any = None, batch: int = len(ROWS),
    ) -> None:  # fmt: skip
        trainer, config = _peer(f"{name}Trainer"), _peer(f"{name}Config")
        args = config(
            output_dir=str(folder), per_device_train_batch_size=batch, report_to=[], use_cpu=True, bf16=False,
            gradient_checkpointing=False, max_length=128, **settings,
        )  # fmt: skip
        models = {"model": copy.deepcopy(policy)} | ({"ref_model": copy.deepcopy(reference)} if reference else {})
        self.trainer = trainer(
            **models, args=args, train_dataset=Dataset.from_list(rows), processing_class=copy.deepcopy(tokenizer)
        )

    def column(self, name: str) -> list[Any]:
        """A column of its tokenised rows."""
        if name not in self.trainer.train_dataset.column_names:
            pytest.skip(f"this version of TRL does not tokenise into {name}")
        return list(self.trainer.train_dataset[name])

    def pairs(self) -> list[dict[str, list[int]]]:
        """Its tokenised rows as ours."""
        if "chosen_labels" not in self.trainer.train_dataset.column_names:
            return _named(*(self.column(key) for key in KEYS))
        ids, *sides = (self.column(name) for name in ("chosen_input_ids", "chosen_labels", "rejected_labels"))
        prompts = [row[: labels.count(-100)] for row, labels in zip(ids, sides[0], strict=True)]
        return _named(prompts, *([[token for token in row if token != -100] for row in side] for side in sides))

    def run(self) -> tuple[float, dict[str, torch.Tensor]]:
        """Mean loss of its batches, and the gradient of it."""
        model, batches = self.trainer.model.eval(), list(self.trainer.get_train_dataloader())
        losses = [self.trainer.compute_loss(model, batch) / len(batches) for batch in batches]
        loss: Any = sum(losses)
        loss.backward()
        return loss.item(), {name: weight.grad for name, weight in model.named_parameters()}


def _named(*columns: list[list[int]]) -> list[dict[str, list[int]]]:
    return [dict(zip(KEYS, row, strict=True)) for row in zip(*columns, strict=True)]


def _peer(name: str) -> Any:
    for module in ("trl", *(f"trl.experimental.{kind}" for kind in ("cpo", "orpo", "kto"))):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            continue
        if found is not None:
            return found
    return pytest.skip(f"this version of TRL has no {name}")


def _ours(
    settings: dict[str, Any], pairs: list[dict[str, Any]], initial: Any, policy: Any, tokenizer: Any, folder: Any
) -> tuple[PreferenceTrainer, Callable[[], tuple[float, dict[str, torch.Tensor]]]]:
    """The trainer, with the log-probs of the initial policy computed, and what gives loss and gradient of a step."""
    args = PreferenceConfig(
        output_dir=str(folder), reference_cache=str(folder / "reference"), total_train_batch_size=len(pairs),
        per_device_train_batch_size=4, max_steps=1, learning_rate=1.0, lr_scheduler_type="constant", warmup_steps=0,
        optim="sgd", weight_decay=0.0, max_grad_norm=1e9, logging_steps=1, save_strategy="no", use_cpu=True,
        bf16=False, disable_tqdm=True, max_length=128, max_prompt_length=64, report_to=[], **settings,
    )  # fmt: skip
    trainer = PreferenceTrainer(
        copy.deepcopy(initial), args, Dataset.from_list(pairs), processing_class=copy.deepcopy(tokenizer)
    )
    trainer.compute_references()
    trainer.model.load_state_dict(policy.state_dict())

    def step() -> tuple[float, dict[str, torch.Tensor]]:
        before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        trainer.train()
        (entry,) = (entry for entry in trainer.state.log_history if "grad_norm" in entry)
        return entry["loss"], {name: before[name] - weight for name, weight in trainer.model.named_parameters()}

    return trainer, step


def _assert_same(ours: tuple[float, dict[str, torch.Tensor]], theirs: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], **LOSS)
    assert ours[1].keys() == theirs[1].keys()
    norm = torch.cat([gradient.flatten() for gradient in theirs[1].values()]).norm()
    assert norm > 1e-2  # there is something to compare
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, **GRADIENT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "theirs,ours",
    [
        ({"loss_type": ["sigmoid"], "beta": 0.2}, {"objective": "dpo", "beta": 0.2}),
        (
            {"loss_type": ["sigmoid_norm"], "beta": 2.0},
            {"objective": "dpo", "beta": 2.0, "length_normalization": True},
        ),
        # TRL divides each log-ratio by its length, and calls tau beta
        ({"loss_type": ["ipo"], "beta": 0.2}, {"objective": "ipo", "tau": 0.2, "length_normalization": True}),
    ],
    ids=["dpo", "dpo normalised", "ipo"],
)
def test_with_an_initial_policy(theirs, ours, initial, policy, tiny_tokenizer, tmp_path) -> None:
    peer = Peer("DPO", theirs, ROWS, policy, tiny_tokenizer, tmp_path / "peer", initial)
    _, step = _ours(ours, peer.pairs(), initial, policy, tiny_tokenizer, tmp_path)
    _assert_same(step(), peer.run())


@pytest.mark.parametrize(
    "theirs,ours",
    [
        ({"beta": 0.2, "cpo_alpha": 0.0}, {"objective": "cpo", "beta": 0.2, "nll_weight": 0.0}),
        # TRL's likelihood term is a mean over all chosen tokens of the batch, the paper's (our nll_weight) a sum over
        # each response; sft_weight is that mean
        ({"beta": 0.2, "cpo_alpha": 0.7}, {"objective": "cpo", "beta": 0.2, "nll_weight": 0.0, "sft_weight": 0.7}),
        # gamma there is not divided by beta
        (
            {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.0, "cpo_alpha": 0.0, "label_smoothing": 0.1},
            {"objective": "simpo", "beta": 2.5, "gamma_beta_ratio": 0.4, "label_smoothing": 0.1},
        ),
        # the reward of AlphaPO in float32 powers of exponentials there, where ours is one expm1
        (
            {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.0, "cpo_alpha": 0.0, "alpha": 0.1},
            {"objective": "alphapo", "beta": 2.5, "gamma_beta_ratio": 0.4, "alpha": 0.1},
        ),
        # TRL's hinge has no margin besides its 1, and takes sums
        (
            {"loss_type": "hinge", "beta": 0.1, "cpo_alpha": 0.0},
            {"objective": "simpo", "loss_type": "hinge", "beta": 0.1, "gamma_beta_ratio": 0.0,
             "length_normalization": False},
        ),
    ],
    ids=["cpo", "cpo with likelihood", "simpo", "alphapo", "hinge"],
)  # fmt: skip
def test_without_one(theirs, ours, initial, policy, tiny_tokenizer, tmp_path) -> None:
    peer = Peer("CPO", theirs, ROWS, policy, tiny_tokenizer, tmp_path / "peer")
    _, step = _ours(ours, peer.pairs(), initial, policy, tiny_tokenizer, tmp_path)
    _assert_same(step(), peer.run())


def test_orpo(initial, policy, tiny_tokenizer, tmp_path) -> None:
    # TRL trains the likelihood of the prompt too, and weighs tokens rather than pairs. Where the prompt is one token,
    # which nothing predicts, and a batch is one pair, neither makes a difference.
    rows = [{**row, "prompt": ""} for row in ROWS]
    peer = Peer("ORPO", {"beta": 0.5}, rows, policy, tiny_tokenizer, tmp_path / "peer", batch=1)
    pairs = peer.pairs()
    assert all(len(pair["prompt_ids"]) == 1 for pair in pairs)
    _, step = _ours({"objective": "orpo", "odds_weight": 0.5}, pairs, initial, policy, tiny_tokenizer, tmp_path)
    _assert_same(step(), peer.run())


def test_orpo_odds_after_prompts(initial, policy, tiny_tokenizer, tmp_path) -> None:
    peer = Peer("ORPO", {"beta": 0.5}, ROWS, policy, tiny_tokenizer, tmp_path / "peer")
    trainer, _ = _ours(
        {"objective": "orpo", "odds_weight": 0.5}, peer.pairs(), initial, policy, tiny_tokenizer, tmp_path
    )
    (batch,) = peer.trainer.get_train_dataloader()
    loss, metrics = peer.trainer.get_batch_loss_metrics(peer.trainer.model.eval(), batch)
    ours = trainer.evaluate(trainer.train_dataset)
    odds_term = ours["eval_loss"] + ours["eval_logps/chosen"]  # without the likelihood, whose mean differs as above
    assert odds_term == pytest.approx(loss.item() - metrics["nll_loss"], **LOSS)
    assert odds_term > 0.1


KTO = {"beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.5}


@pytest.mark.parametrize("paired", [True, False])
def test_kto(paired, initial, policy, tiny_tokenizer, tmp_path) -> None:
    wanted = [True, False, True, True, False, True]
    rows = ROWS if paired else [
        {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}
        for row, label in zip(ROWS, wanted, strict=True)
    ]  # fmt: skip
    responses = len(rows) * (2 if paired else 1)  # TRL makes two rows of a pair, and takes the KL of each micro-batch
    peer = Peer("KTO", KTO, rows, policy, tiny_tokenizer, tmp_path / "peer", initial, batch=responses)
    labels, prompts, completions = (peer.column(name) for name in ("label", "prompt_ids", "completion_ids"))
    if paired:
        assert labels == [True] * len(ROWS) + [False] * len(ROWS)
        pairs = _named(prompts[: len(ROWS)], completions[: len(ROWS)], completions[len(ROWS) :])
    else:
        sides = ([ids if label is side else [] for ids, label in zip(completions, labels, strict=True)]
                 for side in (True, False))  # fmt: skip
        pairs = _named(prompts, *sides)
    trainer, step = _ours({"objective": "kto", **KTO}, pairs, initial, policy, tiny_tokenizer, tmp_path)
    # Both estimate the KL from prompts with responses of others: TRL takes the one before in a micro-batch, we take one
    # response of another row, drawn once for a run. So TRL gets ours, for each row that it made of one of ours.
    theirs, ours = peer.column("KL_completion_ids"), _mismatched_responses(trainer)
    assert all(ids not in pair.values() for ids, pair in zip(ours, pairs, strict=True))
    columns = peer.trainer.train_dataset.remove_columns("KL_completion_ids")
    peer.trainer.train_dataset = columns.add_column("KL_completion_ids", ours * (len(theirs) // len(ours)))
    _assert_same(step(), peer.run())
    (kl,) = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl > 0.1  # not where it is held at 0


def _mismatched_responses(trainer: PreferenceTrainer) -> list[list[int]]:
    """The response that each row's prompt is given for the estimate of the KL."""
    found: dict[int, list[int]] = {}
    for step in trainer.get_train_dataloader():
        for pack in step:
            responses = pack["mismatched"]["target_ids"].split(pack["mismatched"]["chosen_lengths"].tolist())
            found |= zip(pack["pair_index"].tolist(), (ids.tolist() for ids in responses), strict=True)
    return [found[row] for row in range(len(found))]
