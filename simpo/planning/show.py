"""A plan in the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from simpo.planning.plan import Fitting, GpuPlan, Run

_GIB = 2**30


def show(run: Run, plans: Sequence[GpuPlan], console: Console) -> None:
    """Print the plans of a run side by side, and what they assume."""
    plain = console.color_system is None or console.no_color
    console.print(Rule("the run", style="" if plain else "dim"))
    for name, text in run_lines(run, plans[0]):
        console.print(_hanging(name, text))
    console.print(Rule("memory of each GPU in GiB, at the worst moment", style="" if plain else "dim"))
    console.print(_memory_table(plans))
    for plan in plans:
        style = "" if plain else "bold green" if plan.fits else "bold red"
        console.print(_hanging(plan.gpu.name, verdict(plan), style))
    console.print(Rule("micro-batches, time and cost", style="" if plain else "dim"))
    console.print(_times_table(run, plans))
    for plan in plans:
        _show_proposals(plan, console)
    console.print(Rule("assumed", style="" if plain else "dim"))
    for line in assumptions(run, plans):
        console.print(_hanging("-", line, width=1))


def run_lines(run: Run, plan: GpuPlan) -> list[tuple[str, str]]:
    """What is planned: name and text."""
    case, model = plan.case, run.settings.model
    sizes, text = case.sizes, run.config.get_text_config()
    trained = "all of them trained"
    if case.adapter is not None:
        kind = f"{case.bits}-bit base, " if case.bits else ""
        trained = f"{kind}{sizes.trained:,} of adapters trained"
    layers = f"{text.num_hidden_layers} layers x {text.hidden_size}, vocabulary {text.vocab_size:,}"
    precision = "bf16" if case.bf16 else "float32"
    checkpointing = "checkpointing" if case.checkpointing else "activations kept"
    pairs = f"{run.workload.pairs:,} an epoch, {run.pairs_per_step} a step"
    return [
        ("model", f"{model.model_name_or_path} ({run.config.model_type}, {layers})"),
        ("parameters", f"{sizes.total:,}; {trained}"),
        ("engine", f"{case.engine} on {case.engine.gpus} x {plan.gpu.title}"
                   if case.engine.gpus > 1 else f"one {plan.gpu.title}"),
        ("step", f"{precision}, {checkpointing}, {case.optim}, prompts {'shared' if case.shared else 'repeated'}"),
        ("pairs", f"{pairs}, mean tokens {', '.join(map(str, run.workload.mean))} (prompt, chosen, rejected)"),
        ("micro-batch", f"up to {plan.cut.longest:,} tokens, {plan.cut.micro_batches / plan.cut.steps:.1f} a step"),
    ]  # fmt: skip


def verdict(plan: GpuPlan) -> str:
    """Whether it fits, and when the peak is."""
    room = (plan.gpu.memory - plan.memory.total) / _GIB
    says = f"fits, {room:.1f} GiB to spare" if plan.fits else f"does not fit: {-room:.1f} GiB too much"
    return f"{says}; the peak is in {plan.memory.moment}"


def _memory_table(plans: Sequence[GpuPlan]) -> Table:
    table = _table("", [plan.gpu.name for plan in plans])
    for name in plans[0].memory.parts:
        values = [plan.memory.parts[name] for plan in plans]
        if any(value > 0.005 * _GIB for value in values):
            table.add_row(name, *(f"{value / _GIB:,.2f}" for value in values))
    table.add_row("reserve", *(f"{plan.memory.reserve / _GIB:,.2f}" for plan in plans))
    table.add_row("total", *(f"{plan.memory.total / _GIB:,.2f}" for plan in plans), style="bold")
    table.add_row("memory of the GPU", *(f"{plan.gpu.memory / _GIB:,.2f}" for plan in plans))
    return table


def _times_table(run: Run, plans: Sequence[GpuPlan]) -> Table:
    table = _table("", [plan.gpu.name for plan in plans])
    for on, name in ((False, "largest, activations kept"), (True, "largest, checkpointing")):
        table.add_row(name, *(_largest(plan.largest[on]) for plan in plans))
    rows = [
        ("step", lambda t: _seconds(t.step)),
        ("epoch", lambda t: _seconds(t.epoch)),
        ("tokens a second", lambda t: f"{t.tokens_per_second:,.0f}"),
        ("pairs a second", lambda t: f"{t.pairs_per_second:,.1f}"),
    ]
    for name, text in rows:
        table.add_row(name, *(text(plan.times) if plan.times and plan.fits else "-" for plan in plans))
    if run.price is not None:
        epochs = run.settings.training.num_train_epochs
        shown = [f"{plan.cost:,.2f}" if plan.cost is not None and plan.fits else "-" for plan in plans]
        table.add_row(f"cost of {epochs:g} epoch{'' if epochs == 1 else 's'}", *shown)
    return table


def _largest(fitting: Fitting) -> str:
    if fitting.tokens is None:
        return "none fits"
    return f"{fitting.tokens:,} tokens" + ("" if fitting.limited else " (a step)")


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _show_proposals(plan: GpuPlan, console: Console) -> None:
    if plan.fits:
        return
    console.print(Rule(f"what makes it fit on {plan.gpu.name}"))
    if not plan.proposals:
        console.print(_hanging("-", "nothing that was tried: a smaller model, or GPUs with more memory", width=1))
    for number, proposal in enumerate(plan.proposals, start=1):
        needed = f" ({proposal.total / _GIB:.1f} GiB)"
        console.print(_hanging(f"{number}.", " + ".join(proposal.names) + needed, width=2))
        for line in proposal.lines:
            console.print(Text(f"     {line}"))


def assumptions(run: Run, plans: Sequence[GpuPlan]) -> list[str]:
    """What the numbers take for granted."""
    case = plans[0].case
    lines = [
        f"data: {run.workload.source}",
        f"time: the run's arithmetic, recomputation included, at {run.utilisation:.0%} of the dense bf16 peak "
        "(--utilisation); loading, evaluation and checkpoints are not in it",
        f"batches: micro-batches as a run cuts them, imbalance {plans[0].cut.imbalance:.3f}",
    ]
    if case.cuda:
        kernel = "a kernel of the flash family" if case.flash else "SDPA"
        lines.append(f"memory: attention by {kernel}; reserve: 1.5 GiB for CUDA, cuBLAS and NCCL, "
                     "and 5% that the allocator cannot use")  # fmt: skip
    if case.engine.gpus > 1:
        lines.append(f"{case.engine}: buffers by the engine's defaults; docs/planning.md says what was measured")
    if run.settings.training.max_tokens_per_microbatch is None:
        lines.append(f"per_device_train_batch_size: {run.settings.training.per_device_train_batch_size} decides the "
                     "micro-batch; max_tokens_per_microbatch sets it in tokens")  # fmt: skip
    lines += [
        f"{plan.gpu.name}: transfers between GPUs decide the step, {_seconds(times.communication)} to "
        f"{_seconds(times.compute)} of arithmetic; a larger max_tokens_per_microbatch makes fewer of them"
        for plan in plans
        if (times := plan.times) is not None and plan.fits and times.communication > times.compute
    ]
    lines += sorted({f"time: not counted, {plan.untimed}" for plan in plans if plan.untimed})
    return lines


def as_json(run: Run, plans: Sequence[GpuPlan]) -> dict[str, Any]:
    """The same numbers for programs: bytes, seconds, tokens."""
    case = plans[0].case
    return {
        "model": run.settings.model.model_name_or_path,
        "parameters": case.sizes.total,
        "trained": case.sizes.trained,
        "engine": case.engine._asdict(),
        "pairs_per_step": run.pairs_per_step,
        "pairs": run.workload.pairs,
        "mean_tokens": run.workload.mean._asdict(),
        "assumptions": assumptions(run, plans),
        "gpus": [_gpu_json(plan) for plan in plans],
    }


def _gpu_json(plan: GpuPlan) -> dict[str, Any]:
    times = plan.times
    return {
        "gpu": plan.gpu._asdict(),
        "fits": plan.fits,
        "memory": {**plan.memory.parts, "reserve": plan.memory.reserve, "total": plan.memory.total},
        "moment": plan.memory.moment,
        "micro_batch_tokens": plan.cut.longest,
        "micro_batches_per_step": plan.cut.micro_batches / plan.cut.steps,
        "largest_micro_batch": {
            "activations_kept": plan.largest[False].tokens, "checkpointing": plan.largest[True].tokens,
        },
        "times": None if times is None else {**times._asdict(), "epoch": times.epoch},
        "cost": plan.cost,
        "changes": [{"names": one.names, "lines": one.lines, "total": one.total} for one in plan.proposals],
    }  # fmt: skip


def _table(first: str, others: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
    table.add_column(first, no_wrap=True)
    for other in others:
        table.add_column(other, justify="right")
    return table


def _hanging(head: str, text: str, style: str = "", width: int = 12) -> Table:
    """A text whose further lines begin below its first word."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, min_width=width)
    table.add_column(overflow="fold")
    table.add_row(Text(head), Text(text, style=style))
    return table
