"""What the documentation says in tables, lists and drawings is so."""

import dataclasses
import re
import tomllib

import pytest

from simpo.audit.findings import CHECKS
from simpo.cli.launch import launch_config
from simpo.data.schema import TOKEN_COLUMNS
from simpo.errors import ConfigError, ModelError
from simpo.monitor.signals import RULES
from simpo.onpolicy.binarize import BinarizeSettings
from simpo.settings import read_settings
from simpo.settings.fieldtypes import field_types, types_of
from simpo.settings.oldnames import OLD_NAMES
from simpo.settings.rules import RULES as GUARD_RAILS
from tests.docs.pages import ROOT, blocks, table


def test_the_table_of_recipes_is_true() -> None:
    names = []
    for link, model, data, beta, ratio, rate, lengths in table(ROOT / "README.md", "file", "model"):
        found = re.fullmatch(r"\[([\w-]+)\]\((training_configs/\1\.yaml)\)", link)
        assert found, link
        names.append(found[1])
        run = read_settings(ROOT / found[2], ["--use_cpu=true"])
        args = run.training
        assert (run.model.model_name_or_path, list(run.data.dataset_mixer or {})) == (model, [data])
        assert (args.beta, args.gamma_beta_ratio, args.learning_rate) == (float(beta), float(ratio), float(rate))
        assert lengths == f"{args.max_length} ({args.max_prompt_length})"
        assert args.total_train_batch_size == 128 and args.num_train_epochs == 1
        assert args.tokenization == ("standard" if "lora" in found[1] else "paper")
    assert {path.stem for path in (ROOT / "training_configs").glob("*.yaml")} == {*names, "your-own-data", "demo"}


def test_refused_models_are_refused() -> None:
    from transformers import CONFIG_MAPPING

    from simpo.forward import check_model_config

    text = (ROOT / "README.md").read_text()
    (sentence,) = re.findall(r"- Refused, with the reason: (.*?)Attention sinks", text, re.DOTALL)
    names = [name for name in re.findall(r"`(\w+)`", sentence) if name != "AttentionInterface"]
    assert len(names) > 10
    for name in names:
        with pytest.raises(ModelError):
            check_model_config(CONFIG_MAPPING[name](), name)


def test_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {row[0].strip("`") for row in table(ROOT / "README.md", "extra")} <= set(extras)


def test_every_warning_leads_to_its_section() -> None:
    """The sections that monitors name are headings of docs/diagnosis.md, and its first table says the same."""
    page = ROOT / "docs" / "diagnosis.md"
    titles = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
    rows = table(page, "warning")
    for rule in RULES:
        title = rule.section.strip('"')
        assert title.capitalize() in titles, title
        (where,) = [section for names, section in rows if f"`{rule.name}`" in names]
        assert f"[{title.capitalize()}]" in where, rule.name
    linked = {title for _, section in rows for title in re.findall(r"\[([^]]+)\]", section)}
    assert linked == set(titles)


def test_what_the_diagnosis_names_exists() -> None:
    """Checks of the data, guard rails, monitors, settings, and keys of the files that a run and an evaluation leave."""
    files = ("run/manifest.py", "run/plan.py", "batching.py", "evals/answers.py")
    written = "".join((ROOT / "simpo" / name).read_text() for name in files)
    known = {*CHECKS, *(rule.name for rule in (*RULES, *GUARD_RAILS)), *field_types(), *types_of(BinarizeSettings)}
    known |= {"grad_norm", "eval_loss", *TOKEN_COLUMNS}  # the first two are logged by transformers
    text = (ROOT / "docs" / "diagnosis.md").read_text()
    names = {name.split(".")[-1] for name in re.findall(r"`([a-z][a-z.]*_[a-z_.]+)(?:: \S+)?`", text)}
    assert len(names) > 40
    assert {name for name in names if name not in known and not re.search(rf"\b{name}\b", written)} == set()


def test_every_own_setting_is_documented() -> None:
    from transformers import TrainingArguments

    text = (ROOT / "docs" / "configuration.md").read_text()
    inherited = {item.name for item in dataclasses.fields(TrainingArguments)}
    missing = [name for name in [*field_types(), *OLD_NAMES] if name not in inherited and f"`{name}" not in text]
    assert missing == []


def test_launch_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    (names,) = re.findall(r"`--accelerate` takes (.*?), or a file", text, re.DOTALL)
    for name in re.findall(r"`(\w+)`", names):
        assert launch_config(name).is_file()
    with pytest.raises(ConfigError):
        launch_config("zero1")


def test_the_pack_is_drawn_as_it_is() -> None:
    from simpo.attention.layout import visible
    from simpo.packing import pack_pairs

    (drawing,) = [
        block.text for block in blocks("text")
        if block.page == "docs/architecture.md" and "source_positions" in block.text
    ]  # fmt: skip
    names = ["p0", "p1", "p2", "c0", "c1", "r0", "r1", "r2"]
    pair = {"prompt_ids": [0, 1, 2], "chosen_ids": [3, 4], "rejected_ids": [5, 6, 7]}
    pack = pack_pairs([pair])
    rows = {line.split()[0]: line for line in drawing.splitlines() if line.strip()}
    numbers = {key: [int(word) for word in re.findall(r"\b\d\b", rows[key])] for key in ("index", "position")}
    assert numbers == {"index": pack["input_ids"][0].tolist(), "position": pack["position_ids"][0].tolist()}
    sources = pack["source_positions"].tolist()
    assert [int(word) for word in rows["source_positions"].split()[1 : 1 + len(sources)]] == sources
    assert [names.index(word) for word in rows["target_ids"].split()[1:]] == pack["target_ids"].tolist()
    drawn = [tuple(map(int, found)) for found in re.findall(r"\((\d), (\d), (\d), (\d)\)", rows["segments"])]
    assert drawn == [tuple(segment) for segment in pack["layout"].segments]
    columns = [rows["token"].index(name) for name in names]
    for segment in pack["layout"].segments:
        keys = [*range(segment.prompt_start, segment.prompt_end), *range(segment.query_start, segment.query_end)]
        mask = visible(segment.query_end - segment.query_start, len(keys), None, pack["input_ids"].device)
        for row, query in enumerate(range(segment.query_start, segment.query_end)):
            marks = {at for at, column in enumerate(columns) if rows[names[query]].ljust(80)[column] == "x"}
            assert marks == {key for key, seen in zip(keys, mask[row].tolist(), strict=True) if seen}
