"""A small pipeline file, and steps that are played: what the verbs would leave, without a model."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from simpo.data.sources import open_source
from simpo.onpolicy.binarize import BinarizeSettings, run_binarize
from simpo.onpolicy.scored import fingerprint
from simpo.store import Store, read_records

CHECKS = "def count(prompt, responses):\n    return [float(text.count('e')) for text in responses]\n"


def write_pipeline(folder: Path, model: str, **sections: Any) -> Path:
    """A file for both commands, with prompts and an annotator, in `folder`; sections are merged key by key."""
    (folder / "e_counter.py").write_text(CHECKS)
    for name, numbers in (("prompts", range(12)), ("test", range(100, 106))):
        rows = [{"prompt": f"What is {number} + 2?"} for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "generate": {
            "model_name_or_path": model, "dataset_name": str(folder / "prompts.jsonl"), "num_responses": 3,
            "max_new_tokens": 8, "batch_size": 36, "use_cpu": True,
        },
        "annotate": {"annotators": {"es": {"kind": "function", "function": "e_counter:count"}}, "use_cpu": True},
        "binarize": {"test_size": 2},
        "train": {
            "total_train_batch_size": 5, "per_device_train_batch_size": 5, "learning_rate": 1e-3, "use_cpu": True,
            "bf16": False, "disable_tqdm": True, "max_length": 128, "max_prompt_length": 100, "report_to": "none",
        },
        "evaluate": {"dataset_name": str(folder / "test.jsonl")},
    }  # fmt: skip
    for name, section in sections.items():
        recipe[name] = {**recipe[name], **section} if isinstance(section, dict) and name in recipe else section
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


class Played:
    """Takes the place of child processes: what each verb would leave, and the commands that were run.

    Responses carry the number of the model's round, scores grow with it; `fail` is called with verb and settings first,
    and may return an exit status.
    """

    def __init__(self, fail: Callable[[str, dict[str, Any]], int | None] | None = None) -> None:
        self.commands: list[list[str]] = []
        self._fail = fail

    @property
    def ran(self) -> list[str]:
        """Verb and folder of every command, shortened: generate round-1."""
        return [f"{command[3]} {Path(command[4]).parents[1].name}" for command in self.commands]

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(list(command))
        verb, settings = command[3], yaml.safe_load(Path(command[4]).read_text())
        code = self._fail(verb, settings) if self._fail else None
        if code is None:
            getattr(self, verb)(settings)
        return code or 0

    def generate(self, settings: dict[str, Any]) -> None:
        found = re.search(r"round-(\d+)", settings["model_name_or_path"])
        level = int(found[1]) if found else 0
        with Store(settings["output_dir"], {"model": settings["model_name_or_path"]}) as store:
            data = open_source(settings["dataset_name"])
            for row, entry in enumerate(data):
                texts = [f"answer {seed} of round {level}" for seed in settings["seeds"]]
                responses = [{"text": text, "finish_reason": "stop", "tokens": 4 + level, "seed": seed}
                             for text, seed in zip(texts, settings["seeds"], strict=True)]  # fmt: skip
                prompt = [{"role": "user", "content": entry["prompt"]}]
                record = {"id": entry["prompt"], "row": row, "prompt": prompt, "responses": responses, "error": None}
                if entry["prompt"] not in store.done:
                    store.append(entry["prompt"], record)
            store.finish({})

    def annotate(self, settings: dict[str, Any]) -> None:
        with Store(settings["output_dir"], {}) as store:
            for made in read_records(settings["generations"]):
                texts = [response["text"] for response in made["responses"]]
                scores = [int(text.split()[1]) / 100 + int(text.split()[-1]) for text in texts]
                record = {"id": made["id"], "row": made["row"], "of": fingerprint(texts), "scores": {"es": scores}}
                store.append(made["id"], {**record, "error": None})
            store.finish({})

    def binarize(self, settings: dict[str, Any]) -> None:
        run_binarize(BinarizeSettings(**settings))

    def train(self, settings: dict[str, Any]) -> None:
        folder = Path(settings["output_dir"])
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text("weights")
        (folder / "all_results.json").write_text(json.dumps({"eval_rewards/accuracies": 0.75}))
        (folder / "run_manifest.json").write_text(json.dumps({"status": "finished"}))
