"""The demo's model: a byte-level tokenizer, a small Llama taught from scratch to answer, and how both are judged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from scripts.demo_pairs import GOOD, Question, World, answers
from simpo.data.chat import resolve_chat_template

_VOCABULARY = 1024  # upper bound; the texts of the town need fewer
_MAX_TOKENS = 128


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; its turns are ChatML, and the end of a turn is the end of the text."""
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=specials[0], eos_token=specials[2], model_max_length=_MAX_TOKENS
    )
    tokenizer.chat_template = resolve_chat_template("chatml", tokenizer)
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, layers: int, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=_MAX_TOKENS,
        initializer_range=float(__import__("os").environ.get("INIT", "0.02")),
        rope_theta=float(__import__("os").environ.get("THETA", "10000")),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def teach(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    dialogues: Sequence[dict[str, Any]],
    folder: Path,
    *,
    epochs: int,
    seed: int,
) -> float:
    """Supervised training on dialogues; model and tokenizer are saved in `folder`.

    Returns:
        Mean negative log-likelihood of the answers' tokens at the last logging step, in nats.
    """
    args = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        max_length=_MAX_TOKENS,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=seed,
        logging_steps=25,
        report_to="none",
        save_strategy="no",
    )
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(list(dialogues)), processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(str(folder))
    return float([entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1])


@dataclass(frozen=True)
class Judgement:
    """A model on the held-out questions.

    Attributes:
        accuracies: share of pairs whose chosen answer has the higher mean log-probability, by flaw.
        margins: reward of the chosen less that of the rejected answer, one number for each pair.
        good: share of answers drawn from the model that are true, friendly and on topic, word for word.
        samples: greedy answers to the sample questions.
    """

    accuracies: dict[str, float]
    margins: np.ndarray
    good: float
    samples: list[str]


def judge(
    folder: Path,
    pairs: Sequence[dict[str, Any]],
    questions: Sequence[Question],
    world: World,
    *,
    samples: Sequence[int],
    draws: int,
    beta: float,
    seed: int,
) -> Judgement:
    """Load the model in `folder`, score the pairs, and let it answer.

    Args:
        folder: a model as a run leaves it.
        pairs: held-out rows.
        questions: those of `pairs`, in the same order.
        world: what is true.
        samples: numbers of the questions to answer greedily.
        draws: how many of the questions are answered by sampling at temperature 1.
        beta: scale of the rewards.
        seed: of the draws.
    """
    from simpo import SimPOConfig, SimPOTrainer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    args = SimPOConfig(
        output_dir=str(folder), beta=beta, max_length=_MAX_TOKENS, max_prompt_length=_MAX_TOKENS // 2,
        per_device_eval_batch_size=32, use_cpu=True, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = SimPOTrainer(model, args, processing_class=tokenizer)
    results: Any = trainer.predict(Dataset.from_list(list(pairs))).predictions
    flaws = np.array([pair["flaw"] for pair in pairs])
    right = results["rewards/accuracies"]
    if len(right) != len(pairs):
        raise RuntimeError(f"{len(pairs) - len(right)} held-out pairs were dropped")
    texts = [question.text for question in questions]
    torch.manual_seed(seed)
    drawn = generate(AutoModelForCausalLM.from_pretrained(folder), tokenizer, texts[:draws], sample=True)
    hits = [text in answers(question, GOOD, world) for text, question in zip(drawn, questions, strict=False)]
    return Judgement(
        accuracies={str(flaw): float(right[flaws == flaw].mean()) for flaw in dict.fromkeys(flaws)},
        margins=results["rewards/margins"],
        good=float(np.mean(hits)),
        samples=generate(
            AutoModelForCausalLM.from_pretrained(folder), tokenizer, [texts[number] for number in samples], sample=False
        ),
    )


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, questions: Sequence[str], *, sample: bool) -> list[str]:
    """Answer questions, greedily or by drawing from the model's distribution."""
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in questions
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    output = model.eval().generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=64,
        do_sample=sample,
        top_k=0,
    )
    return [
        text.strip()
        for text in tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ]
