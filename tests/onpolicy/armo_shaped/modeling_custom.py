"""A reward model with code of its own, in the shape of RLHFlow/ArmoRM-Llama3-8B-v0.1.

It imports what transformers 5 no longer has, looks for the last text token by the padding and for the assistant's
header by its ids, and gives `score`.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING
from transformers.utils import ModelOutput, add_start_docstrings_to_model_forward


@dataclass
class CustomOutput(ModelOutput):
    rewards: torch.Tensor | None = None
    score: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class Gating(nn.Module):
    def __init__(self, width: int, objectives: int) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.ones(1) * 1.5)
        self.layers = nn.ModuleList([nn.Linear(width, 16), nn.Linear(16, objectives)])

    def forward(self, hidden):
        return torch.softmax(self.layers[1](torch.relu(self.layers[0](hidden))), dim=1) * self.logit_scale[0]


class LlamaForRewardModelWithGating(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, config.num_objectives, bias=False)
        self.post_init()
        eye = torch.zeros(config.num_objectives, config.num_objectives)
        eye[range(config.num_objectives), range(config.num_objectives)] = 1.0
        self.reward_transform_matrix = nn.Parameter(eye, requires_grad=False)
        self.gating = Gating(config.hidden_size, config.num_objectives)

    def header_of(self, ids):
        pattern = list(self.config.header_ids)
        for at in range(len(ids) - len(pattern), -1, -1):
            if ids[at : at + len(pattern)] == pattern:
                return at
        raise ValueError("Token pattern not found in the list.")

    @add_start_docstrings_to_model_forward(LLAMA_INPUTS_DOCSTRING)
    def forward(self, input_ids, attention_mask=None, use_cache=None, output_attentions=None, return_dict=None):
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        options = {"use_cache": use_cache, "output_attentions": output_attentions, "return_dict": return_dict}
        hidden = self.model(input_ids, attention_mask=attention_mask, inputs_embeds=None, **options)[0]
        ends = (torch.eq(input_ids, self.config.pad_token_id).int().argmax(-1) - 1) % input_ids.shape[-1]
        rows = torch.arange(len(input_ids))
        rewards = self.regression_layer(hidden[rows, ends])
        gates = self.gating(hidden[rows, [self.header_of(ids.tolist()) for ids in input_ids]])
        score = (gates * (rewards @ self.reward_transform_matrix)).sum(dim=1)
        return CustomOutput(rewards=rewards, score=score, logits=rewards)
