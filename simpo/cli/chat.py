"""`simpo chat MODEL [MODEL]`: try a model in the terminal."""

import argparse

from simpo.cli.words import Flag, Verbs, add_verb, count
from simpo.errors import ConfigError

HELP = """\
Talk to a model, or to two at once, with the right chat template. `--prompt` answers once, to be piped:
  simpo chat outputs/llama-3-8b-instruct-simpo meta-llama/Meta-Llama-3-8B-Instruct
  simpo chat outputs/llama-3-8b-instruct-simpo --prompt "Name three rivers." > answer.txt
"""

FLAGS = {
    "--prompt": Flag("needed"),
    "--system": Flag("needed"),
    "--temperature": Flag("needed"),
    "--top-p": Flag("needed"),
    "--max-new-tokens": Flag("needed"),
    "--seed": Flag("needed"),
    "--chat-template": Flag("needed"),
    "--dtype": Flag("needed"),
    "--trust-remote-code": Flag("none"),
    "--cpu": Flag("none"),
}


def add(verbs: Verbs) -> None:
    """Its parser."""
    parser = add_verb(
        verbs,
        "chat",
        run,
        summary="try a model in the terminal, or two side by side",
        description=HELP,
        epilog="In the conversation: /new, /system TEXT, /quit; Ctrl-C stops an answer. See docs/evaluation.md.",
        usage="simpo chat MODEL [MODEL] [options]",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a hub name or a directory, also of an adapter")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this on stdout and end; - reads it from stdin")
    parser.add_argument("--system", metavar="TEXT", help="the system turn")
    parser.add_argument(
        "--temperature", type=float, metavar="X", help="0 is greedy (default: the model's own, else 0.7)"
    )
    parser.add_argument("--top-p", type=float, metavar="X", help="nucleus (default: the model's own, else 1)")
    parser.add_argument("--max-new-tokens", type=count, default=1024, metavar="N", help="bound of an answer (1024)")
    parser.add_argument("--seed", type=count, metavar="N", help="of every answer (default: another each time)")
    parser.add_argument(
        "--chat-template",
        metavar="T",
        help="a shipped template, a .jinja file or jinja text (default: the model's own)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="of the weights (default: bfloat16; float32 on a CPU)",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--cpu", action="store_true", help="compute on the CPU although there is another device")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Load the models and talk."""
    if overrides:
        raise ConfigError(f"simpo chat has no setting {overrides[0].partition('=')[0]}; see simpo chat --help")
    if len(args.models) > 2:
        raise ConfigError(f"simpo chat takes one model or two, not {len(args.models)}")

    from simpo.chat.chat import ChatSettings, Speaker
    from simpo.chat.terminal import chat

    settings = ChatSettings(
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        chat_template=args.chat_template,
        dtype=args.dtype,
        use_cpu=args.cpu,
        trust_remote_code=args.trust_remote_code,
    )
    chat([Speaker(model, settings) for model in args.models], system=args.system, prompt=args.prompt)
