"""`simpo plan`: settings and options -> plans, shown and written."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simpo.audit.show import open_console
from simpo.errors import ConfigError, ModelError
from simpo.flops import PairLengths
from simpo.model import load_model_config
from simpo.planning.engine import Engine
from simpo.planning.gpus import Gpu
from simpo.planning.plan import Run, plan_run
from simpo.planning.show import as_json, show
from simpo.planning.timing import UTILISATION
from simpo.planning.workload import read_workload
from simpo.settings import RunSettings


@dataclass(frozen=True)
class PlanOptions:
    """What `simpo plan` is asked for beside the settings.

    Args:
        gpus: kinds to plan for, side by side.
        engine: what drives the run, on how many.
        price: of a GPU for an hour.
        mean_tokens, pairs: in place of the data's.
        utilisation: share of the peak.
        json: file to write.
    """

    gpus: Sequence[Gpu]
    engine: Engine
    price: float | None = None
    mean_tokens: PairLengths | None = None
    pairs: int | None = None
    utilisation: float = UTILISATION
    json: Path | None = None


def run_planning(settings: RunSettings, options: PlanOptions) -> None:
    """Plan a run, show it, and write it.

    Raises:
        SimPOError: what is wrong, where, and what to write instead.
    """
    if options.json is not None and options.json.is_dir():
        raise ConfigError(f"--json {options.json}: is a folder; name a file in it, say {options.json / 'plan.json'}")
    if options.json is not None and not os.access(options.json.absolute().parent, os.W_OK):
        raise ConfigError(f"{options.json}: its folder cannot be written; name a file elsewhere")
    model = settings.model
    try:
        config = load_model_config(
            str(model.model_name_or_path), revision=model.model_revision, trust_remote_code=model.trust_remote_code
        )
    except ModelError as error:
        if error.__cause__ is None:  # it was loaded, and is refused
            raise
        hint = "a plan needs no weights: write --model_name_or_path=FOLDER, of which config.json is enough"
        raise ModelError(f"{error}; {hint}") from error
    workload = read_workload(settings, options.mean_tokens, options.pairs)
    run = Run(
        config, model.peft_config(), settings, options.engine, workload, options.price, utilisation=options.utilisation
    )
    plans = [plan_run(run, gpu) for gpu in options.gpus]
    show(run, plans, open_console())
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(run, plans), indent=2) + "\n", encoding="utf-8")
