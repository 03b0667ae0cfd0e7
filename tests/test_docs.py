"""What the documentation shows works: commands, Python, YAML, links, named files, tables, and the pasted output."""

import ast
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from simpo import cli
from simpo.audit.findings import CHECKS
from simpo.cli.analysis_plan import Plan
from simpo.cli.inspection import source_overrides
from simpo.cli.launch import launch_config
from simpo.cli.words import split_overrides
from simpo.data.schema import TOKEN_COLUMNS
from simpo.errors import ConfigError, ModelError
from simpo.evals.run import read_eval_settings
from simpo.monitor.signals import RULES
from simpo.onpolicy.annotate import AnnotateSettings
from simpo.onpolicy.annotators.kinds import read_annotators
from simpo.onpolicy.binarize import BinarizeSettings
from simpo.onpolicy.recipe import read_recipe
from simpo.onpolicy.settings import GenerateSettings
from simpo.run.sft.settings import check_sft_settings, sft_field_types
from simpo.settings import check_settings, read_settings
from simpo.settings.fieldtypes import field_types, types_of
from simpo.settings.flat import read_flat
from simpo.settings.rules import RULES as GUARD_RAILS
from simpo.sweep.space import check_candidates, read_space

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
HH = ROOT.parent / "shared" / "data" / "hh_harmless_train.jsonl.gz"
# Verbs with settings of their own -> their dataclass.
ON_POLICY: dict[str, type[Any]] = {
    "generate": GenerateSettings,
    "annotate": AnnotateSettings,
    "binarize": BinarizeSettings,
}
WITHOUT_SETTINGS = ("compare", "chat", "report")
# Files that the text invents for the reader's own.
INVENTED = {
    "my-machine.yaml": "per_device_train_batch_size: 4\n",
    "generate.yaml": "model_name_or_path: my-model\ndataset_name: p.jsonl\noutput_dir: outputs/responses\n",
    "annotate.yaml": "generations: g\noutput_dir: s\nannotators: {a: {kind: function, function: 'm:f'}}\n",
    "outputs/try-2/settings.yaml": "model_name_or_path: my-model\ndataset_mixer: {data/pairs.jsonl: 1.0}\n",
}


class Block(NamedTuple):
    """A fenced block: its page, the line where it begins, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Fenced blocks of these languages on every page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(str(page.relative_to(ROOT)), line, match[1], match[2]))
    return [block for block in found if not languages or block.language in languages]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of the shell blocks as words, and every `pytest ...` and `simpo ...` within a line of text."""
    for block in blocks("bash", "sh", "console"):
        lines = block.text.replace("\\\n", " ").splitlines()
        if block.language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            for part in line.split(" && "):
                words = shlex.split(part, comments=True)
                if words:
                    yield block.name, words
    for page in PAGES:
        for line in re.findall(
            r"`((?:\S*python -m )?pytest [^`]+|simpo (?:train|sft) [^`]+\.yaml[^`]*)`", page.read_text()
        ):
            yield page.name, shlex.split(line)


COMMANDS = list(commands())


def test_something_is_documented() -> None:
    programs = {words[0] for _, words in COMMANDS}
    assert {"make", "pip", "conda", "simpo", "pytest"} <= programs
    assert ["make", "demo"] in [words for _, words in COMMANDS] and ["make", "test"] in [words for _, words in COMMANDS]


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=[f"{where} {words[0]}" for where, words in COMMANDS])
def test_command(where: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # an environment variable
        words = words[1:]
    program = words[0].removeprefix(".venv/bin/")
    if words[1:3] == ["-m", "pytest"]:
        program, words = "pytest", words[2:]
    checks: dict[str, Callable[[list[str], Path], None]] = {
        "make": check_make,
        "pip": check_pip,
        "conda": check_conda,
        "accelerate": check_accelerate,
        "simpo": check_simpo,
        "pytest": check_pytest,
        "python": check_benchmark,
        "pre-commit": check_pre_commit,
        "sbatch": check_sbatch,
        "torchrun": check_torchrun,
    }
    assert program in checks, f"{where}: no test knows how to check {program}"
    checks[program](words[1:], tmp_path)


def check_make(words: list[str], _: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) [?:]?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    names = [word for word in words if "=" not in word]
    assert names and set(names) <= targets
    assert {word.split("=")[0] for word in words if "=" in word} <= variables


def check_pip(words: list[str], _: Path) -> None:
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if "-c" in words:
        assert Path(words[words.index("-c") + 1]).is_file()
    if "-e" in words:
        local = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", words[words.index("-e") + 1])
        assert local and set((local[1] or "").split(",")) - {""} <= set(extras)


def check_conda(words: list[str], _: Path) -> None:
    if words[:2] == ["env", "create"]:
        assert Path(words[words.index("-f") + 1]).is_file()
    else:
        assert words == ["activate", yaml.safe_load(Path("environment.yml").read_text())["name"]]


def check_accelerate(words: list[str], tmp_path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    args = launch_command_parser().parse_args(words[1:])
    verb = {"scripts/run_simpo.py": "train", "scripts/run_sft.py": "sft"}[args.training_script]
    assert Path(args.config_file).is_file() and Path(args.training_script).is_file()
    check_simpo([verb, *args.training_script_args], tmp_path)


def check_sbatch(words: list[str], tmp_path: Path) -> None:
    (at,) = [number for number, word in enumerate(words) if word.endswith(".sbatch")]
    assert Path(words[at]).is_file()
    check_simpo(words[at + 1 :], tmp_path)


def check_torchrun(words: list[str], tmp_path: Path) -> None:
    from torch.distributed.run import parse_args

    args = parse_args(words)
    assert Path(args.training_script).is_file()
    check_simpo([{"run_simpo": "train"}[Path(args.training_script).stem], *args.training_script_args], tmp_path)


def check_simpo(words: list[str], tmp_path: Path) -> None:
    own, overrides = split_overrides(words[1:], cli.VERBS[words[0]].FLAGS)
    args = cli._parser().parse_args([words[0], *own])
    if words[0] in ("onpolicy", "iterate"):
        read_recipe(args.configs, overrides, rounds=words[0] == "iterate")
        return
    if words[0] in ON_POLICY:
        read_flat(ON_POLICY[words[0]], config_files(args.configs, tmp_path), overrides)
        return
    if words[0] == "eval":
        model = [f"--model_name_or_path={args.model}"] if args.model else []
        read_eval_settings(args.benchmark, config_files(args.configs, tmp_path), [*model, *overrides])
        return
    if words[0] == "analyze":
        Plan.of(
            args.models,
            args.names,
            [f"--dataset_name={args.data}", *overrides],
            initial=args.initial,
            output=args.output,
            prompts=args.prompts,
            max_new_tokens=args.max_new_tokens,
        )
        return
    if words[0] in WITHOUT_SETTINGS:
        assert not overrides
        return
    if words[0] == "sweep":
        check_candidates(read_space(args.space), args.configs, [*overrides, "--use_cpu=true"])
        return
    if words[0] == "inspect":
        overrides += source_overrides(args)
    elif words[0] != "plan" and args.accelerate is not None:
        assert launch_config(args.accelerate).is_file()
    files = config_files(args.configs, tmp_path)
    check = check_sft_settings if words[0] == "sft" else check_settings
    check(files, [*overrides, "--use_cpu=true"])


def config_files(configs: list[str], tmp_path: Path) -> list[Path]:
    """The files of a command; those that the text invents are written."""
    for config in set(configs) & set(INVENTED):
        (tmp_path / config).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / config).write_text(INVENTED[config])
    return [tmp_path / config if config in INVENTED else Path(config) for config in configs]


def check_pytest(words: list[str], _: Path) -> None:
    paths = [word for word in words if word.startswith("tests/")] or ["tests"]
    assert all(Path(path).exists() for path in paths)
    texts = [_test_code(Path(path)) for path in paths]
    names = [re.findall(r"def (test_\w+)", text) for text in texts]
    if "-k" in words:  # matches a test in every file that is named
        assert all(any(words[words.index("-k") + 1] in name for name in found) for found in names)
    if "-m" in words:
        assert all(f"pytest.mark.{words[words.index('-m') + 1]}" in text for text in texts)


def _test_code(path: Path) -> str:
    return path.read_text() if path.is_file() else "".join(file.read_text() for file in sorted(path.rglob("test_*.py")))


def check_benchmark(words: list[str], _: Path) -> None:
    """`python -m benchmarks.NAME`, with options that it knows."""
    assert words[0] == "-m" and words[1].startswith("benchmarks.")
    text = Path(words[1].replace(".", "/") + ".py").read_text() + Path("benchmarks/report.py").read_text()
    assert all(f'"{word}"' in text for word in words[2:] if word.startswith("--"))


def check_pre_commit(words: list[str], _: Path) -> None:
    assert words == ["install"] and Path(".pre-commit-config.yaml").is_file()


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.name)
def test_python_compiles_and_its_imports_work(block: Block) -> None:
    tree = ast.parse(block.text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec(compile(ast.Module(imports, []), block.name, "exec"), {})


def test_python_of_the_readme_runs(golden: dict[str, Any], tiny_dir: str, tmp_path: Path) -> None:
    (block,) = [block for block in blocks("python") if block.page == "README.md"]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in golden["rows"]))
    code = block.text
    for shown, here in (
        ("meta-llama/Meta-Llama-3-8B-Instruct", tiny_dir),
        ("outputs/my-simpo", str(tmp_path / "out")),
        ("data/pairs.jsonl", str(data)),
    ):
        assert shown in code
        code = code.replace(shown, here)
    namespace: dict[str, Any] = {}
    exec(compile(code, block.name, "exec"), namespace)
    assert namespace["trainer"].state.global_step == 1
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.name)
def test_yaml_names_settings(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = yaml.safe_load(block.text)
    if "space" in settings:  # what a sweep searches
        (tmp_path / "space.yaml").write_text(block.text)
        settings = read_space(tmp_path / "space.yaml").space
    if "generate" in settings:  # sections of a pipeline
        monkeypatch.chdir(ROOT)
        (tmp_path / "recipe.yaml").write_text(block.text)
        read_recipe([tmp_path / "recipe.yaml"], rounds="train" in settings)
        return
    if "annotators" in settings:
        assert set(settings) <= set(types_of(AnnotateSettings)) and read_annotators(settings["annotators"])
        return
    known = {"docs/sft.md": sft_field_types, "docs/on-policy.md": lambda: types_of(GenerateSettings)}
    assert settings and set(settings) <= set(known.get(block.page, field_types)())


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.name)
def test_json_is_a_row(block: Block) -> None:
    from simpo.data.dialogues import Dialogue, read_row
    from simpo.data.schema import Pair, normalise

    if block.page == "docs/sft.md":
        assert isinstance(read_row(json.loads(block.text)), Dialogue)
        return
    row = json.loads(block.text)
    if "completion" in row:  # as simpo.data.unpaired reads it
        row["chosen" if row["label"] else "rejected"] = row.pop("completion")
    assert isinstance(normalise(row, unpaired=True), Pair)


def test_every_fence_is_closed_and_named() -> None:
    for page in PAGES:
        fences = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)
        assert all(fences[::2]) and not any(fences[1::2]) and len(fences) % 2 == 0, page


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        whole = (page.parent / path) if path else page
        assert whole.exists(), target
        assert not anchor or anchor in anchors(whole), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """`simpo/x.py`, `tests/`, `simpo.data.load` and the like in the text; NAME and * stand for something."""
    folders = "simpo|tests|scripts|docs|training_configs|accelerate_configs"
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(rf"`((?:{folders})/[^`\s]*|[\w-]+\.(?:toml|yml|txt))`", text):
        if "NAME" not in name:
            assert list(ROOT.glob(name.rstrip("/"))) or name in INVENTED, name
    for name in re.findall(r"`(simpo(?:\.\w+)+)`", text):
        assert has_attribute(name), name


def has_attribute(dotted: str) -> bool:
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        if path.is_dir() or path.with_suffix(".py").is_file():
            module = __import__(".".join(parts[:length]), fromlist=["_"])
            return all(hasattr(module, part) for part in parts[length:][:1])
    return False


def table(page: Path, *head: str) -> list[list[str]]:
    """Rows of the table whose first columns are named so."""
    lines = page.read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("| " + " | ".join(head)))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


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


@pytest.mark.slow
def test_the_pasted_plan_is_what_is_printed(tmp_path: Path) -> None:
    if not HH.exists():
        pytest.skip("the 2,000 conversations lie beside the project, in ../shared/data, and are not there")
    (block,) = blocks("console")
    command, *shown = block.text.splitlines()
    words = shlex.split(command.removeprefix("$ simpo "))
    for folder in ("tests", "training_configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_bytes(gzip.decompress(HH.read_bytes()))
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-m", "simpo.cli", *words, "--dataset_num_proc=1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    printed = iter(answer.stdout.splitlines())
    for line in shown:  # in this order, with lines left out at "..."
        assert line.strip() == "..." or line in printed, line
    assert not (tmp_path / "outputs").exists()
