"""Parameters of a model and of what is trained of it, counted on a model without weights."""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig

from simpo.errors import ModelError
from simpo.planning.rehearsal import decoder_layers, meta_model


class Sizes(NamedTuple):
    """Numbers of parameters; tied ones count once.

    Fields:
        total, trained: of the model with its adapter; the part that is trained.
        layer: of the largest decoder layer.
        embedding, tail: of the input embedding; of final norm and head, which may be the embedding's weights again.
        linear: of linear maps outside the head, which quantisation packs.
        largest: of the largest trained tensor.
        largest_linear: of the largest of those linear maps.
    """

    total: int
    trained: int
    layer: int
    embedding: int
    tail: int
    linear: int
    largest: int
    largest_linear: int

    @property
    def frozen(self) -> int:
        """Parameters that are not trained."""
        return self.total - self.trained


def count_sizes(config: PretrainedConfig, adapter: Any = None) -> Sizes:
    """The sizes of a model from its config.

    Args:
        config: of the model.
        adapter: a PEFT configuration, or None where all weights are trained.

    Raises:
        ModelError: the model or its adapter cannot be built from the config.
    """
    try:
        model = meta_model(config, torch.float32, adapter)
    except (ValueError, KeyError, AttributeError, ImportError) as error:
        raise ModelError(f"the model cannot be built from its config ({config.model_type}): {error}") from error
    base: Any = model.get_base_model() if adapter is not None else model
    parameters = list(model.parameters())
    layer = max(_count(layer) for layer in decoder_layers(model))
    embedding = base.get_input_embeddings().weight.numel()
    head = base.get_output_embeddings()
    linear = [module.weight.numel() for name, module in base.named_modules()
              if isinstance(module, nn.Linear) and module is not head and "lora_" not in name]  # fmt: skip
    total = _count(model)
    tied = head is not None and head.weight is base.get_input_embeddings().weight
    return Sizes(
        total=total,
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        layer=layer,
        embedding=embedding,
        tail=max(0, total - (0 if tied else embedding) - sum(_count(layer) for layer in decoder_layers(model))),
        linear=sum(linear),
        largest=max((parameter.numel() for parameter in parameters if parameter.requires_grad), default=0),
        largest_linear=max(linear, default=0),
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
