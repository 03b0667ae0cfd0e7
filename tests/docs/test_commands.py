"""The commands that the documentation shows can be given, and what it pastes is printed."""

import gzip
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from simpo import cli
from simpo.cli.analysis_plan import Plan
from simpo.cli.inspection import source_overrides
from simpo.cli.launch import launch_config
from simpo.cli.words import split_overrides
from simpo.evals.run import read_eval_settings
from simpo.onpolicy.annotate import AnnotateSettings
from simpo.onpolicy.binarize import BinarizeSettings
from simpo.onpolicy.recipe import read_recipe
from simpo.onpolicy.settings import GenerateSettings
from simpo.run.sft.settings import check_sft_settings
from simpo.settings import check_settings
from simpo.settings.flat import read_flat
from simpo.sweep.space import check_candidates, read_space
from tests.docs.pages import INVENTED, PAGES, ROOT, blocks

HH = ROOT.parent / "shared" / "data" / "hh_harmless_train.jsonl.gz"
# Verbs with settings of their own -> their dataclass.
ON_POLICY: dict[str, type[Any]] = {
    "generate": GenerateSettings,
    "annotate": AnnotateSettings,
    "binarize": BinarizeSettings,
}
WITHOUT_SETTINGS = ("compare", "chat", "report")


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
