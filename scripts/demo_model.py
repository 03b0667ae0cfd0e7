"""The demo's model: a byte-level tokenizer and a small Llama; how it learns to answer, and its answers."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from simpo.data.chat import resolve_chat_template

_VOCABULARY = 1024  # upper bound; the words of the town need fewer
_MAX_TOKENS = 128
_MAX_ANSWER = 48


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer. Turns are written as ChatML; the end of a turn is the end of the text."""
    pad, start, end = "<|pad|>", "<|im_start|>", "<|im_end|>"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[pad, start, end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, eos_token=end, model_max_length=_MAX_TOKENS
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
        tie_word_embeddings=True,
        initializer_range=hidden_size**-0.5,  # the default of large models makes a small one learn slowly
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
) -> None:
    """Supervised training on dialogues; model and tokenizer are saved in `folder`."""
    with warnings.catch_warnings():
        # transformers is renaming the argument; versions without the new name are supported too
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        args = SFTConfig(
            output_dir=str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            weight_decay=0.01,
            max_length=_MAX_TOKENS,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=seed,
            logging_steps=50,
            report_to="none",
            save_strategy="no",
        )
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(list(dialogues)), processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(str(folder))


@torch.inference_mode()
def generate(model: Any, tokenizer: Any, questions: Sequence[str]) -> list[str]:
    """Answer questions greedily."""
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in questions
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    tokens = model.eval().generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=_MAX_ANSWER,
        do_sample=False,
    )
    replies = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in replies]


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Hide the libraries' bars for what takes no time."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
        transformers.utils.logging.enable_progress_bar()
