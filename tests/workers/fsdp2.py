"""Under torch's own fully_shard on 2 gloo processes: log-probs and gradients against the unsharded model.

Usage: fsdp2.py OUT.json; the report holds the largest differences for each variant.
"""

import json
import math
import os
import sys
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from trajectory import pairs
from transformers import LlamaConfig, LlamaForCausalLM

from simpo.forward import install_packed_forward
from simpo.logps import response_logps
from simpo.losses import PairLogps, step_loss
from simpo.model import float32_results
from simpo.objectives import OBJECTIVES
from simpo.packing import pack_pairs
from simpo.parity import MODEL_INPUTS as INPUTS

SHAPE = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def make_model(tied: bool) -> LlamaForCausalLM:
    """The same random model on every rank."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    return install_packed_forward(model)


def backward(model, rows, total_pairs: int, world: int, objective: str = "simpo") -> torch.Tensor:
    """One share of a step of `total_pairs` pairs, scaled for engines that average gradients. The initial policy gives
    every token 1/120, as a uniform one would."""
    pack = pack_pairs(rows)
    lengths = torch.stack((pack["chosen_lengths"], pack["rejected_lengths"]), dim=1)
    sums = response_logps(model(**{key: pack[key] for key in INPUTS}), lengths.flatten())
    chosen, rejected = sums.view(-1, 2).unbind(1)
    uniform = -math.log(120) * lengths
    logps = PairLogps(chosen, rejected, *lengths.unbind(1), *uniform.unbind(1), torch.tensor(0.5))
    results = OBJECTIVES[objective].bind({})(logps)
    share = step_loss(
        results.losses,
        chosen,
        pack["pair_weights"],
        pairs_in_step=total_pairs,
        chosen_tokens_in_step=100,
        sft_weight=0.5,
    )
    (share * world).backward()
    return sums.detach()


def check(rows, *, tied: bool, head_unit: bool, accumulate: bool, objective: str = "simpo") -> dict[str, object]:
    """Shard, run this rank's half of the rows, compare with the whole step on the unsharded model."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    reference, model = make_model(tied), make_model(tied)
    shard = partial(fully_shard, mesh=mesh)
    for layer in model.model.layers:
        shard(layer)
    if head_unit:
        shard(model.lm_head)
    shard(model)
    expected = backward(reference, rows, len(rows), 1, objective)
    mine = rows[rank::world]
    cuts = [mine[: len(mine) // 2], mine[len(mine) // 2 :]] if accumulate else [mine]
    sums = torch.cat([backward(model, cut, len(rows), world, objective) for cut in cuts])
    gradients = dict(reference.named_parameters())
    worst = 0.0
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor) and isinstance(parameter.grad, DTensor), name
        full = parameter.grad.full_tensor()
        worst = max(worst, (full - gradients[name].grad).abs().max().item())
    value = (sums - expected.view(-1, 2)[rank::world].flatten()).abs().max().item()
    head = model.lm_head.weight
    sharded = isinstance(model, FSDPModule) and head.to_local().shape[0] < head.shape[0]
    scale = max(parameter.grad.abs().max().item() for parameter in gradients.values())
    return {"sharded": bool(sharded), "value": value, "gradient": worst, "gradient_scale": scale}


def check_rounding(rows) -> dict[str, object]:
    """bf16 compute by accelerate's policy and units, with results left in float32, against float32 compute."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    theirs = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)  # what accelerate builds for bf16
    reference, model = make_model(False), make_model(False)
    shard = partial(fully_shard, mesh=mesh, mp_policy=float32_results(theirs))
    for layer in model.model.layers:
        shard(layer)
    shard([model.model.norm, model.lm_head])
    shard(model)
    pack = pack_pairs(rows)
    inputs = {key: pack[key] for key in INPUTS}
    with torch.no_grad():
        exact = reference(**inputs)
    logps = model(**inputs)
    logps.mean().backward()
    error = (logps - exact).detach()
    gradient = model.lm_head.weight.grad
    return {"dtype": str(logps.dtype), "mean_error": abs(error.mean().item()), "gradient_dtype": str(gradient.dtype)}


def main() -> None:
    """Run all variants."""
    dist.init_process_group("gloo")
    rows = list(pairs(8))
    report = {
        f"tied={tied} head_unit={head_unit} accumulate={accumulate}": check(
            rows, tied=tied, head_unit=head_unit, accumulate=accumulate
        )
        for tied, head_unit in ((False, False), (False, True), (True, False))
        for accumulate in (False, True)
    }
    for name in OBJECTIVES:
        report[name] = check(rows, tied=True, head_unit=False, accumulate=True, objective=name)
    report["bf16"] = check_rounding(rows)
    reports: list = [None] * dist.get_world_size()
    dist.all_gather_object(reports, report)
    if dist.get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(reports, file)
    dist.barrier()  # no process may close its connections while another still uses them
    dist.destroy_process_group()
    os._exit(0)  # the report is written; what torch tears down at exit is not under test


if __name__ == "__main__":
    main()
