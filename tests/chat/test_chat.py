"""Chat: the ids that are sent, where an answer ends, how it is sampled, and the conversation in the terminal."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from simpo import cli
from simpo.chat.chat import ChatSettings, Conversation, Speaker
from simpo.chat.terminal import Chat, answer_once
from simpo.errors import ConfigError, DataError, ModelError

ROOT = Path(__file__).resolve().parents[2]
ASK: Any = [{"role": "user", "content": "How do I keep basil alive?"}]


def nothing(_: str) -> None:
    """Where nobody listens."""


def make_speaker(model: str, **settings: Any) -> Speaker:
    return Speaker(model, ChatSettings(**{"use_cpu": True, "max_new_tokens": 12, "temperature": 0.0} | settings))


@pytest.fixture(scope="module")
def speaker(tiny_dir) -> Speaker:
    return make_speaker(tiny_dir)


def copy_of(tiny_dir: str, folder: Path, **generation: Any) -> str:
    shutil.copytree(tiny_dir, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | generation))
    return str(folder)


def greedy_ids(speaker: Speaker, messages: Any = ASK, count: int = 12) -> list[int]:
    """The plain twin: the most likely token, one after the other, without a cache and without end tokens."""
    ids = list(speaker.prompt(messages).ids)
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(speaker.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def test_one_bos_and_the_template(speaker: Speaker) -> None:
    ids = speaker.prompt(Conversation("Be brief.", list(ASK)).messages()).ids
    tokenizer = speaker.policy.tokenizer
    assert ids.count(tokenizer.bos_token_id) == 1 == ids[:1].count(tokenizer.bos_token_id)
    text = tokenizer.decode(ids)
    assert "Be brief." in text and text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


@pytest.mark.parametrize("template", ["zephyr", "chatml"])
def test_another_template(tiny_dir, template: str) -> None:
    ids = make_speaker(tiny_dir, chat_template=template).prompt(ASK).ids
    text = make_speaker(tiny_dir).policy.tokenizer.decode(ids)
    assert ("<|user|>" if template == "zephyr" else "<|im_start|>user") in text


def test_greedy_is_the_most_likely_token(speaker: Speaker) -> None:
    said: list[str] = []
    answer = speaker.answer(ASK, said.append)
    expected = speaker.policy.tokenizer.decode(greedy_ids(speaker), skip_special_tokens=True)
    assert answer == expected.strip() == "".join(said).strip()


@pytest.mark.parametrize("which", [0, 1])
def test_it_ends_at_each_of_two_end_tokens(tiny_dir, tmp_path: Path, speaker: Speaker, which: int) -> None:
    """Both stand in generation_config.json; the one that comes ends the answer, beside the tokenizer's own."""
    ids = greedy_ids(speaker)
    other = next(token for token in range(50, 99) if token not in ids)
    ends = [[ids[4], other], [other, ids[4]]][which]
    found = make_speaker(copy_of(tiny_dir, tmp_path / "model", eos_token_id=ends))
    stops = set(found.generation_config(found.prompt(ASK)).eos_token_id)
    eot = found.policy.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert stops == {*ends, found.policy.tokenizer.eos_token_id, eot}
    kept = ids[: ids.index(ids[4]) + 1]
    assert found.answer(ASK, nothing) == found.policy.tokenizer.decode(kept, skip_special_tokens=True).strip()


def test_sampling_as_the_user_the_model_or_we_say(tiny_dir, tmp_path: Path) -> None:
    def sampling(found: Speaker) -> tuple[Any, ...]:
        config = found.generation_config(found.prompt(ASK))
        return config.do_sample, config.temperature, config.top_p, config.top_k

    assert sampling(make_speaker(tiny_dir, temperature=None)) == (True, 0.7, 1.0, 0)
    assert sampling(make_speaker(tiny_dir)) == (False, None, None, None)
    own = copy_of(tiny_dir, tmp_path / "model", temperature=0.3, top_p=0.8, do_sample=True)
    assert sampling(make_speaker(own, temperature=None)) == (True, 0.3, 0.8, 0)
    assert sampling(make_speaker(own, temperature=1.5, top_p=0.5)) == (True, 1.5, 0.5, 0)


def test_a_seed_repeats_an_answer(tiny_dir) -> None:
    one, two = (make_speaker(tiny_dir, temperature=1.0, seed=seed) for seed in (1, 2))
    answers = [found.answer(ASK, nothing) for found in (one, one, two)]
    assert answers[0] == answers[1] != answers[2]


def test_an_interrupt_ends_the_answer(tiny_dir) -> None:
    speaker, said = make_speaker(tiny_dir, max_new_tokens=60, temperature=1.0, seed=0), []

    def stop(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            raise KeyboardInterrupt

    answer = speaker.answer(ASK, stop)
    whole = speaker.answer(ASK, nothing)
    assert 0 < len(answer) < len(whole) and whole.startswith(answer[:-1])


def test_an_adapter(tiny_dir, tmp_path: Path, speaker: Speaker) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_dir), config).save_pretrained(tmp_path / "adapter")
    speaker.policy.tokenizer.save_pretrained(tmp_path / "adapter")
    adapted = make_speaker(str(tmp_path / "adapter"))
    assert adapted.answer(ASK, nothing) != speaker.answer(ASK, nothing)


def test_what_a_template_refuses(tiny_dir) -> None:
    template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}" \
        "{{ m.content }}{% endfor %}"  # fmt: skip
    found = make_speaker(tiny_dir, chat_template=template)
    with pytest.raises(DataError, match="no system"):
        found.prompt(Conversation("Be brief.", list(ASK)).messages())


def test_a_model_without_a_template(tiny_dir, tmp_path: Path) -> None:
    """Said before weights are read: there are none here."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_dir, folder)
    (folder / "model.safetensors").unlink()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)
    path.write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(DataError, match="chat_template"):
        make_speaker(str(folder))


def test_a_conversation_longer_than_the_context(speaker: Speaker) -> None:
    with pytest.raises(DataError, match="leaves no room in the context"):
        speaker.prompt([{"role": "user", "content": "basil " * 3000}])


def test_logits_that_are_no_numbers(tiny_dir) -> None:
    found = make_speaker(tiny_dir, temperature=1.0)
    with torch.no_grad():
        found.model.get_output_embeddings().weight[:] = torch.nan
    with pytest.raises(ModelError, match="logits are NaN or infinite; try --dtype float32"):
        found.answer(ASK, nothing)


# The terminal


class Echo:
    """A speaker that says what it was asked, and how many turns there were."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[Any] = []

    def answer(self, messages: Any, say: Any) -> str:
        self.asked.append([(turn["role"], turn["content"]) for turn in messages])
        answer = f"{self.name} heard {messages[-1]['content']}"
        if messages[-1]["content"] == "long":
            raise DataError("leaves no room")
        for word in answer.split(" "):
            say(word + " ")
        return answer


def talk(lines: list[str], *names: str, width: int = 80, terminal: bool = False) -> tuple[list[Any], str]:
    speakers: list[Any] = [Echo(name) for name in names]
    out = io.StringIO()
    chat = Chat(
        speakers, "Be kind.", Console(file=out, width=width, height=20, force_terminal=terminal, color_system=None)
    )
    for line in lines:
        chat.take(line)
    return speakers, out.getvalue()


def test_each_model_remembers_its_own_answers() -> None:
    (one, two), shown = talk(["hello", "again"], "one", "two")
    assert one.asked[1] == [
        ("system", "Be kind."),
        ("user", "hello"),
        ("assistant", "one heard hello"),
        ("user", "again"),
    ]
    assert two.asked[1][2] == ("assistant", "two heard hello")
    assert shown.index("one heard hello") < shown.index("two:") < shown.index("two heard hello")


def test_commands() -> None:
    (one,), shown = talk(["hello", "/new", "a", "/system Be brief.", "b", "/system", "c", "/nwe"], "one")
    assert one.asked[1:] == [
        [("system", "Be kind."), ("user", "a")], [("system", "Be brief."), ("user", "b")], [("user", "c")],
    ]  # fmt: skip
    assert "/nwe is no command: /new begins again" in shown


def test_what_cannot_be_asked_is_said_and_forgotten() -> None:
    (one,), shown = talk(["long", "b"], "one")
    assert "leaves no room; /new begins again" in shown and one.asked[1] == [("system", "Be kind."), ("user", "b")]


@pytest.mark.parametrize(("width", "beside"), [(120, True), (80, False)])
def test_two_models_side_by_side_where_there_is_room(width: int, beside: bool) -> None:
    _, shown = talk(["hello"], "one", "two", width=width, terminal=True)
    together = [line for line in shown.splitlines() if "one heard hello" in line and "two heard hello" in line]
    assert bool(together) == beside
    assert max((len(line) for line in shown.splitlines() if line.startswith("│")), default=0) <= width


def test_once_two_models_under_their_names() -> None:
    speakers: list[Any] = [Echo("one"), Echo("two")]
    out = io.StringIO()
    answer_once(speakers, "hi", None, out)
    assert out.getvalue() == "one:\none heard hi \n\ntwo:\ntwo heard hi \n"


# The command


def run(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "simpo.cli", "chat", *words, "--cpu"], cwd=ROOT, input=text,
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip


def test_a_prompt_is_answered_on_stdout_alone(tiny_dir, speaker: Speaker) -> None:
    done = run(tiny_dir, "--prompt", "-", "--temperature=0", "--max-new-tokens=12", text=ASK[0]["content"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == speaker.answer(ASK, nothing)


def test_a_conversation_from_a_pipe_ends_with_it(tiny_dir) -> None:
    done = run(tiny_dir, "--temperature=0", "--max-new-tokens=4", text="hello\n/bad\n")
    assert done.returncode == 0 and "/bad is no command" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "--temperature=-1"], "--temperature -1 must be 0 or more"),
        (["MODEL", "--top-p=0"], "--top-p 0 must be above 0 and at most 1"),
        (["MODEL", "--max-new-tokens=0"], "--max-new-tokens 0 must be at least 1"),
        (["MODEL", "--chat-template=nope"], "nope"),
        (["MODEL", "--beta=1"], "simpo chat has no setting --beta"),
        (["MODEL", "--prompt= "], "--prompt: is empty"),
        (["/none/such", "--prompt=a"], "no such directory"),
        (["a", "b", "c"], "takes one model or two, not 3"),
    ],
)
def test_wrong_words(tiny_dir, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", *(word.replace("MODEL", tiny_dir) for word in words), "--cpu"]) == 2
    assert message in capsys.readouterr().err


def test_settings_alone() -> None:
    with pytest.raises(ConfigError):
        ChatSettings(top_p=1.5)
