"""Guard rails before a run: its settings against what is known (`simpo.settings.rules`)."""

from collections.abc import Iterable
from dataclasses import dataclass

from simpo.config import DataConfig, ModelSettings, PreferenceConfig
from simpo.settings.case import Case, RunFacts
from simpo.settings.rules import RULES, Level


@dataclass(frozen=True)
class Advice:
    """What a rule says about a run.

    Attributes:
        name: of the rule.
        level: `warning` or `note`.
        setting: that it is about.
        message: what is so, and why it matters.
        source: where that is known from.
        fix: the line of YAML to write instead; "" where there is none.
    """

    name: str
    level: Level
    setting: str
    message: str
    source: str
    fix: str

    def lines(self) -> list[str]:
        """For people; those of a warning begin with `!`."""
        write = f"write {self.fix}   " if self.fix else ""
        return [f"{'!' if self.level == 'warning' else '-'} {self.name}: {self.message}", f"    {write}({self.source})"]


def lint(
    training: PreferenceConfig,
    model: ModelSettings | None = None,
    data: DataConfig | None = None,
    facts: RunFacts | None = None,
) -> list[Advice]:
    """What the rules say about settings, in the order of the rules. Nothing is loaded or read.

    Args:
        training: how it is trained.
        model: what is trained; None: all weights of a model that is not named.
        data: what is read, if that is known.
        facts: what else is known; None: nothing, and the model counts as a large one.

    >>> from simpo import SimPOConfig
    >>> args = SimPOConfig(output_dir="x", learning_rate=5e-6, total_train_batch_size=128, use_cpu=True)
    >>> [(advice.name, advice.fix) for advice in lint(args)]
    [('learning_rate_high', 'learning_rate: 1.0e-6')]
    """
    case = Case(training, model or ModelSettings(), data or DataConfig(), facts or RunFacts())
    return [
        Advice(
            rule.name, rule.level, rule.setting, rule.message.format(case=case), rule.source, rule.fix.format(case=case)
        )
        for rule in RULES
        if rule.condition(case)
    ]


def strict_problems(advice: Iterable[Advice]) -> str:
    """Every warning with what to write instead, as --strict tells them; "" where there is none."""
    grave = [one for one in advice if one.level == "warning"]
    if not grave:
        return ""
    said = "\n  ".join(f"{one.name}: {one.message}; write {one.fix} ({one.source})" for one in grave)
    return f"--strict counts warnings as errors; the settings raise {len(grave)}\n  {said}"
