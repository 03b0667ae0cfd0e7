"""What must stand in no file, log or card: tokens, keys and passwords, by their names and by their looks."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

HIDDEN = "***"
_NAMES = re.compile(
    r"(?:^|_)(?:token|auth|authorization|api_?key|access_?key|private_?key|secret|secret_?key|password|passwd|"
    r"passphrase|credentials?)$"
)
# Names of vocabularies and lengths that end likewise.
_HARMLESS = re.compile(
    r"(?:^|_)(?:bos|eos|eot|pad|unk|sep|cls|mask|stop|end|start|special|image|audio|new|first|last|next|per)_token$"
)
_SHORTEST = 8  # characters of an environment variable's secret: `none` and `1` are words of every text

# Hugging Face, OpenAI and the like, GitHub, AWS, Slack, Google, JSON web tokens, HTTP headers.
_LOOKS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|(?:sk|rk)-[A-Za-z0-9_-]{16,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|"
    r"AKIA[0-9A-Z]{16}|xox[abeoprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]+\.[\w-]*)|"
    r"(?<=Bearer )[^\s\"']{8,}"
)
_PASSWORD = re.compile(r"(?<=:)(//?)[^\s/?#@\"']+@")  # https://user:password@host; as a path, it has one /
_ARGUMENT = re.compile(r"(?<=[?&])([\w.-]+)=([^&#\s\"']+)")  # of an address: ...?token=...
_SIGNATURES = {"sig", "signature", "x_amz_signature", "x_amz_credential", "x_goog_signature", "key", "access_token"}


def is_secret(name: str) -> bool:
    """Whether a setting, option or header of this name holds a secret.

    >>> [is_secret(name) for name in ("hub_token", "--api-key", "eos_token", "max_new_tokens", "api_key_env")]
    [True, True, False, False, False]
    """
    plain = name.lstrip("-").replace("-", "_").lower()
    return bool(_NAMES.search(plain)) and not _HARMLESS.search(plain)


def redact_text(text: str) -> str:
    """A text without what looks like a secret, or is the value of an environment variable of a secret's name.

    >>> redact_text("read https://me:word@host/data.jsonl?token=abc with hf_abcdefghijklmnopqrst")
    'read https://***@host/data.jsonl?token=*** with ***'
    """
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and is_secret(name):
            text = text.replace(value, HIDDEN)
    text = _PASSWORD.sub(rf"\1{HIDDEN}@", _LOOKS.sub(HIDDEN, text))
    return _ARGUMENT.sub(_hide_argument, text)


def _hide_argument(found: re.Match[str]) -> str:
    name = found[1]
    secret = is_secret(name) or name.replace("-", "_").lower() in _SIGNATURES
    return f"{name}={HIDDEN}" if secret else found[0]


def redact(value: Any) -> Any:
    """JSON values without secrets, at any depth: by the names of keys, and in texts by their looks.

    >>> redact({"hub_token": "x", "options": {"token": "y", "dtype": "float32"}, "push": True})
    {'hub_token': '<HUB_TOKEN>', 'options': {'token': '<TOKEN>', 'dtype': 'float32'}, 'push': True}
    """
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {key: _mask(key) if _hides(key, item) else redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


def without_secrets(value: Any) -> Any:
    """The same without the keys of secrets: what can be read again. Other texts stay as they are."""
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items() if not _hides(key, item)}
    return [without_secrets(item) for item in value] if isinstance(value, list) else value


def redact_command(words: Sequence[str]) -> list[str]:
    """A command line without secrets: those of `--name=value`, of `--name value`, and by their looks.

    >>> redact_command(["train", "run.yaml", "--hub_token", "abc", "--api-key=abc", "--beta=2"])
    ['train', 'run.yaml', '--hub_token', '***', '--api-key=***', '--beta=2']
    """
    found: list[str] = []
    hidden = False
    for word in map(str, words):
        name, equals, _ = word.partition("=")
        option = word.startswith("-") and is_secret(name)
        if hidden and not word.startswith("--"):
            found.append(HIDDEN)
        elif option and equals:
            found.append(f"{name}={HIDDEN}")
        else:
            found.append(redact_text(word))
        hidden = option and not equals
    return found


def secret_in(value: Any) -> str | None:
    """The first key of a secret at any depth, or None."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            found = str(key) if _hides(key, item) else secret_in(item)
            if found:
                return found
    if isinstance(value, list | tuple):
        return next(filter(None, map(secret_in, value)), None)
    return None


def _hides(key: Any, value: Any) -> bool:
    return value is not None and not isinstance(value, bool) and isinstance(key, str) and is_secret(key)


def _mask(key: str) -> str:
    return f"<{key.upper()}>"


class TellsNoSecrets:
    """For arguments of transformers, before which it stands among the parents: no secret where they are written."""

    def to_dict(self) -> dict[str, Any]:
        """As transformers', which trackers write down, without secrets in nested settings either."""
        return cast(dict[str, Any], redact(super().to_dict()))  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        # whoever pickles arguments writes them into a file
        return cast(dict[str, Any], without_secrets(vars(self)))

    def __copy__(self) -> Self:
        # nothing is written then: copies keep all
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other
