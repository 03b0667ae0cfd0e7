"""Configs of well-known models, by their public numbers; nothing is downloaded."""

from typing import Any

from transformers import Gemma2Config, LlamaConfig, Qwen3Config

_LLAMA3 = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 8192}


def llama_8b() -> Any:
    shape = {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32}
    return LlamaConfig(**_LLAMA3, **shape, tie_word_embeddings=False)


def llama_70b() -> Any:
    shape = {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64}
    return LlamaConfig(**_LLAMA3, **shape, tie_word_embeddings=False)


def small(family: str = "llama", **changes: Any) -> Any:
    """Some 2 million parameters in 6 layers."""
    shape = {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, **changes}  # fmt: skip
    if family == "gemma2":
        return Gemma2Config(**shape, sliding_window=4096, query_pre_attn_scalar=32)
    return {"llama": LlamaConfig, "qwen3": Qwen3Config}[family](**shape)
