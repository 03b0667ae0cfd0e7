"""The same benchmark through its official programs: their config files, written beside the answers.

AlpacaEval 2   alpaca_eval_configs.yaml, alpaca_eval_prompt.txt  for `alpaca_eval evaluate_from_model --model_configs`
Arena-Hard     config/{gen_answer,api,judge}_config.yaml for gen_answer.py and gen_judgment.py of v0.1
MT-Bench       mt_bench_commands.txt                     its programs take no files, only options

Sources: tatsu-lab/alpaca_eval, `models_configs`; lmarena/arena-hard-auto v0.1, `config`; princeton-nlp/SimPO,
`eval/alpacaeval2/configs` and `eval/arenahard/configs`; lm-sys/FastChat, `fastchat/llm_judge/README.md`.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from simpo.data.schema import Message
from simpo.evals.decoding import ALPACA_EVAL, MT_BENCH, Decoding
from simpo.evals.judges import arena_hard, mt_bench
from simpo.evals.layouts import write_text
from simpo.evals.settings import EvalSettings
from simpo.sampling.policy import Policy
from simpo.sampling.prompts import Prompt

_SERVER = "http://localhost:8000/v1"  # where a model is served, unless the settings say


def write_official_configs(settings: EvalSettings, policy: Policy, decoding: Decoding) -> list[Path]:
    """Write the official programs' configs for this model and decoding into `settings.output_dir`.

    Args:
        settings: of the evaluation.
        policy: its stop tokens and template; prompts were prepared.
        decoding: how the answers are sampled.

    Returns:
        What was written.
    """
    folder = Path(str(settings.output_dir))
    if settings.benchmark == MT_BENCH:
        texts = {folder / "mt_bench_commands.txt": _mt_bench(settings, decoding)}
    elif settings.benchmark == ALPACA_EVAL:
        template = folder / "alpaca_eval_prompt.txt"
        texts = {
            template: alpaca_prompt(policy, decoding),
            folder / "alpaca_eval_configs.yaml": _yaml(_alpaca_eval(settings, policy, decoding, template)),
        }
    else:
        configs = _arena_hard(settings, policy, decoding)
        texts = {folder / "config" / name: _yaml(value) for name, value in configs.items()}
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)


def alpaca_prompt(policy: Policy, decoding: Decoding) -> str:
    """The prompt of one instruction as alpaca_eval's template, less the BOS that vLLM puts before it."""
    system = decoding.system_message
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    prompt = Prompt("", 0, [*first, {"role": "user", "content": "{instruction}"}])
    policy.prepare([prompt])
    return prompt.text


def _alpaca_eval(settings: EvalSettings, policy: Policy, decoding: Decoding, template: Path) -> dict[str, Any]:
    completions = {
        "model_name": settings.model_name_or_path,
        "model_kwargs": {"dtype": settings.dtype or "bfloat16"},
        "max_new_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "seed": settings.seed,
        "stop_token_ids": list(policy.stop_ids),
    }
    return {
        str(settings.name): {
            "prompt_template": str(template.absolute()),  # others are looked for in the package
            "fn_completions": "vllm_local_completions",
            "completions_kwargs": completions,
            "pretty_name": settings.name,
        }
    }


def _arena_hard(settings: EvalSettings, policy: Policy, decoding: Decoding) -> dict[str, dict[str, Any]]:
    prompt = yaml.safe_load(arena_hard.PROMPT.read_text(encoding="utf-8"))
    judge = settings.judge if settings.judge not in (None, "none") else arena_hard.JUDGE
    # no key: the programs take it from OPENAI_API_KEY, and a local server wants any word
    endpoints = [{"api_base": url, "api_key": "none"} for url in settings.server_urls or [_SERVER]]
    served: dict[str, Any] = {
        "model_name": settings.server_model or settings.model_name_or_path,
        "endpoints": endpoints,
        "api_type": "openai",
        "parallel": 8,
    }
    if decoding.system_message:
        served["system_prompt"] = decoding.system_message
    judging: dict[str, Any] = {
        "model_name": judge,
        "endpoints": None,
        "api_type": "openai",
        "parallel": settings.judge_max_in_flight,
    }
    if settings.judge_urls:
        judging["endpoints"] = [{"api_base": url, "api_key": "none"} for url in settings.judge_urls]
    return {
        "gen_answer_config.yaml": {
            "name": "config of answer generation for Arena Hard v0.1",
            "bench_name": "arena-hard-v0.1",
            "temperature": decoding.temperature,
            "max_tokens": decoding.max_new_tokens,
            "num_choices": 1,
            "stop_token_ids": list(policy.stop_ids),
            "model_list": [settings.name],
        },
        "api_config.yaml": {str(settings.name): served, str(judge): judging},
        "judge_config.yaml": {
            "name": "judgment config file for Arena Hard",
            "bench_name": "arena-hard-v0.1",
            "judge_model": judge,
            "reference": False,
            "ref_model": None,
            "baseline": True,
            "baseline_model": arena_hard.BASELINE,
            "pairwise": True,
            "temperature": 0,
            "max_tokens": arena_hard.MAX_TOKENS,
            "number_of_judgment_attempts": arena_hard.ATTEMPTS,
            "regex_pattern": arena_hard.VERDICT.pattern,
            "system_prompt": prompt["system"],
            "prompt_template": [prompt["user"]],
            "model_list": [settings.name],
        },
    }


def _mt_bench(settings: EvalSettings, decoding: Decoding) -> str:
    name, model = shlex.quote(str(settings.name)), shlex.quote(settings.model_name_or_path)
    judges = mt_bench.JUDGES if settings.judge in (None, "none") else (str(settings.judge),)
    lines = [f"python gen_model_answer.py --model-path {model} --model-id {name} "
             f"--max-new-token {decoding.max_new_tokens} --dtype {settings.dtype or 'bfloat16'}"]  # fmt: skip
    for judge in map(shlex.quote, judges):
        lines += [
            f"python gen_judgment.py --mode single --model-list {name} --judge-model {judge}",
            f"python show_result.py --mode single --model-list {name} --judge-model {judge}",
        ]
    return "\n".join(["# in FastChat, fastchat/llm_judge", *lines]) + "\n"
