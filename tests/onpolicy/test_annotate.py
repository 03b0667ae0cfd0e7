"""`simpo annotate`: what goes wrong has its row, and what was done stays."""

import json
import math
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from simpo.cli import main
from simpo.engines.base import Failure, Result, Sample
from simpo.errors import ConfigError, StoreError
from simpo.onpolicy.agreement import agreement, agreement_table, kendall_tau
from simpo.onpolicy.annotate import AnnotateSettings, AnnotatorBroken, annotate, report_lines, run_annotate
from simpo.onpolicy.annotators.base import Item
from simpo.onpolicy.annotators.function import FunctionAnnotator
from simpo.onpolicy.annotators.judge import Judge, read_template
from simpo.onpolicy.annotators.kinds import JudgeSettings, RewardModelSettings, identity
from simpo.store import Store, read_records, read_summary
from tests.launching import let_forks_be_killed, run
from tests.onpolicy.made import generation, store_in

TEXTS = ["one", "two words", "three more words"]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    return store_in(tmp_path)


def length(prompt: Any, responses: list[str]) -> list[float]:
    return [len(text.split()) for text in responses]


def options(generations: str, out: Path, **changes: Any) -> AnnotateSettings:
    annotators = {"length": {"kind": "function", "function": "tests.onpolicy.test_annotate:length"}}
    return AnnotateSettings(generations, str(out), **{"annotators": annotators, "use_cpu": True, **changes})


def run_function(function: Any, generations: str, out: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    with Store(out, {}) as store:
        annotate(options(generations, out, **changes), {"f": FunctionAnnotator(function)}, store)
        return {record["id"]: record for record in store.records()}


def test_the_command(store, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "checks.py").write_text(
        "def score(prompt, responses):\n    return [-len(text) for text in responses]\n"
    )
    monkeypatch.chdir(tmp_path)
    generations = store("g", [generation(row, TEXTS) for row in range(5)])
    both = {"length": "tests.onpolicy.test_annotate:length", "short": "checks:score"}
    config = {"generations": generations, "output_dir": str(tmp_path / "s"), "use_cpu": True,
              "annotators": {name: {"kind": "function", "function": path} for name, path in both.items()}}  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["annotate", str(tmp_path / "c.yaml")]) == 0
    records = list(read_records(tmp_path / "s"))
    assert [record["scores"] for record in records] == [{"length": [1, 2, 3], "short": [-3, -9, -16]}] * 5
    text = capsys.readouterr().out
    assert "5 prompts annotated" in text and "length: 15 scores, mean 2" in text
    assert "length and short" in text and "-1.000" in text and "0.0%" in text
    assert read_summary(tmp_path / "s") is not None
    assert main(["binarize", f"--generations={generations}", f"--scores={tmp_path / 's'}", "--annotator=short",
                 f"--output_dir={tmp_path / 'pairs'}"]) == 0  # fmt: skip
    config["annotators"]["short"]["function"] = "tests.onpolicy.test_annotate:length"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["annotate", str(tmp_path / "c.yaml")]) == 2
    assert "made with other settings (annotator short: " in capsys.readouterr().err


def test_each_fault_has_its_row_and_stops_no_other(store, tmp_path) -> None:
    def odd(prompt: Any, responses: list[str]) -> list[Any]:
        row = int(prompt[0]["content"].split()[1].rstrip("?"))
        if row == 1:
            raise ZeroDivisionError("the checker\nfell over")
        return {2: [float("nan"), 1, float("inf")], 3: [7, 7, 7], 4: [1, 2], 5: [None, 1, 2]}.get(row, [1, 2, 3])

    made = [generation(row, TEXTS) for row in range(6)]
    made.append(generation(6, [], error="the prompt is longer than the context"))
    records = run_function(odd, store("g", made), tmp_path / "s")
    found = {key: (record["scores"].get("f"), record["error"]) for key, record in records.items()}
    assert found == {
        "p0": ([1, 2, 3], None),
        "p1": ([None] * 3, "f: ZeroDivisionError: the checker"),
        "p2": ([None, 1, None], "f: response 0: the score is nan; f: response 2: the score is inf"),
        "p3": ([7, 7, 7], None),
        "p4": ([None] * 3, "f: ValueError: the function returned 2 scores for 3 responses"),
        "p5": ([None, 1, 2], None),
        "p6": (None, "generation: the prompt is longer than the context"),
    }
    lines = "\n".join(report_lines(list(records.values())))
    assert "scores missing in 4 prompts (rows 1, 2, 4, 5)" in lines
    assert "all scores equal in 1 prompts, which give no pair (rows 3)" in lines
    assert "  row 1 (p1): f: ZeroDivisionError: the checker" in lines


def test_a_function_is_given_the_columns_that_it_asks_for(store, tmp_path) -> None:
    def checker(prompt: Any, responses: list[str], columns: dict[str, Any]) -> list[float]:
        return [float(text == columns["answer"]) for text in responses]

    made = [generation(row, ["4", "5"], columns={"answer": answer}) for row, answer in enumerate(["4", "5"])]
    records = run_function(checker, store("g", made), tmp_path / "s")
    assert [record["scores"] for record in records.values()] == [{"f": [1, 0]}, {"f": [0, 1]}]


def test_an_annotator_that_always_fails_keeps_nothing(store, tmp_path) -> None:
    def broken(prompt: Any, responses: list[str]) -> list[float]:
        raise NameError("name 'mtah' is not defined")

    generations = store("g", [generation(row, TEXTS) for row in range(5)])
    with pytest.raises(AnnotatorBroken, match=r"f fails on every prompt, e.g. p0 \(row 0\): NameError: name 'mtah'"):
        run_function(broken, generations, tmp_path / "s")
    assert len(run_function(length, generations, tmp_path / "s")) == 5
    with Store(tmp_path / "late", {}) as late:  # where others were scored before, these may be the only bad ones
        annotate(options(store("one", [generation(9, TEXTS)]), tmp_path), {"f": FunctionAnnotator(length)}, late)
        annotate(options(generations, tmp_path), {"f": FunctionAnnotator(broken)}, late)
        assert sum(record["error"] is not None for record in late.records()) == 5


def test_errors_are_tried_again_when_asked(store, tmp_path, monkeypatch) -> None:
    generations = store("g", [generation(row, TEXTS) for row in range(3)])
    monkeypatch.setattr(
        sys.modules["tests.onpolicy.test_annotate"], "length", lambda prompt, responses: [math.inf, 1, 2]
    )
    run_annotate(options(generations, tmp_path / "s"))
    monkeypatch.undo()
    run_annotate(options(generations, tmp_path / "s"))
    assert all(record["error"] for record in read_records(tmp_path / "s"))
    run_annotate(options(generations, tmp_path / "s", retry_errors=True))
    assert [record["scores"] for record in read_records(tmp_path / "s")] == [{"length": [1, 2, 3]}] * 3


def test_responses_that_were_sampled_again_are_scored_again(store, tmp_path) -> None:
    generations = store("g", [generation(row, TEXTS) for row in range(3)])
    run_annotate(options(generations, tmp_path / "s"))
    with Store(generations, {}, again=lambda record: record["row"] == 1) as again:
        again.append("p1", generation(1, ["now of", "two"]))
    run_annotate(options(generations, tmp_path / "s"))
    assert [record["scores"]["length"] for record in read_records(tmp_path / "s")] == [[1, 2, 3], [2, 1], [1, 2, 3]]
    assert read_summary(tmp_path / "s") is not None


def test_a_template_that_was_edited_is_another_one(store, tmp_path) -> None:
    template = tmp_path / "ask.jinja"
    template.write_text("one")
    settings = JudgeSettings("m", "http://localhost:1/v1", prompt_template=str(template))
    before = identity(settings)
    assert identity(settings) == before and before["prompt_template"].startswith(f"{template} (")
    template.write_text("two")
    assert identity(settings) != before
    inline = RewardModelSettings("m", chat_template="{{ messages }}" * 999)
    assert identity(inline)["chat_template"] == inline.chat_template


def test_other_settings_after_an_annotator_that_kept_nothing(store, tmp_path, monkeypatch) -> None:
    generations = store("g", [generation(row, TEXTS) for row in range(3)])
    code = "def broken(p, r):\n    return [float('nan')] * 3\n\n\ndef good(p, r):\n    return [1, 2, 3]\n"
    (tmp_path / "checks.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "checks", raising=False)
    of = {name: {"f": {"kind": "function", "function": f"checks:{name}"}} for name in ("broken", "good")}
    with pytest.raises(AnnotatorBroken):
        run_annotate(options(generations, tmp_path / "s", annotators=of["broken"]))
    run_annotate(options(generations, tmp_path / "s", annotators=of["good"]))
    with pytest.raises(StoreError, match="made with other settings"):
        run_annotate(options(generations, tmp_path / "s", annotators=of["broken"]))


def test_an_annotator_that_knows_no_number(store, tmp_path) -> None:
    generations = store("g", [generation(row, TEXTS) for row in range(3)])
    with pytest.raises(AnnotatorBroken, match="f gives nan to every response of 3 prompts"):
        run_function(lambda prompt, responses: [math.nan] * 3, generations, tmp_path / "s")
    settings = JudgeSettings("m", "http://localhost:1/v1")
    silent = Judge(settings, FakeJudge(lambda *_: "I cannot say."))
    with (
        Store(tmp_path / "j", {}) as judged,
        pytest.raises(AnnotatorBroken, match=r"j scores no response of 3 .*verdict"),
    ):
        annotate(options(generations, tmp_path), {"j": silent}, judged)
    assert len(run_function(lambda prompt, responses: [None] * 3, generations, tmp_path / "none")) == 3


def test_going_on_repeats_nothing(store, tmp_path) -> None:
    generations = store("g", [generation(row, TEXTS) for row in range(9)])
    seen: list[str] = []

    def until_five(prompt: Any, responses: list[str]) -> list[float]:
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(prompt[0]["content"])
        return length(prompt, responses)

    with pytest.raises(KeyboardInterrupt):
        run_function(until_five, generations, tmp_path / "s", prompts_per_batch=2)
    first = seen[:4]  # the fifth was alone in its batch
    seen.clear()

    def note(prompt: Any, responses: list[str]) -> list[float]:
        seen.append(prompt[0]["content"])
        return length(prompt, responses)

    assert len(run_function(note, generations, tmp_path / "s")) == 9
    assert len(seen) == 5 and not set(seen) & set(first)


def test_killed_at_any_moment(store, tmp_path) -> None:
    """SIGKILL at random moments, again and again; then the set is that of a run that nobody disturbed."""

    def slow(prompt: Any, responses: list[str]) -> list[float]:
        time.sleep(0.01)
        return length(prompt, responses)

    let_forks_be_killed()
    generations = store("g", [generation(row, [*TEXTS, f"and {row}"]) for row in range(40)])
    expected = run_function(length, generations, tmp_path / "undisturbed")
    rng, fork, kept = random.Random(3), multiprocessing.get_context("fork"), [0]
    for _ in range(12):
        child = fork.Process(
            target=run_function, args=(slow, generations, tmp_path / "s"), kwargs={"prompts_per_batch": 3}
        )
        child.start()
        time.sleep(rng.uniform(0.02, 0.3))
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        if (tmp_path / "s" / "store.json").exists():
            kept.append(len(list(read_records(tmp_path / "s"))))
    assert kept == sorted(kept) and kept[-1] > 0
    assert run_function(length, generations, tmp_path / "s") == expected


def test_a_second_run_is_refused(store, tmp_path) -> None:
    generations = store("g", [generation(0, TEXTS)])
    with Store(tmp_path / "s", {}), pytest.raises(StoreError, match="another process"):
        run_annotate(options(generations, tmp_path / "s"))


def test_settings(store, tmp_path) -> None:
    with pytest.raises(ConfigError, match="prompts_per_batch: 0 must be at least 1"):
        options("g", tmp_path, prompts_per_batch=0)
    with pytest.raises(ConfigError, match=r"annotators: annotators.x: kind: nothing is unknown"):
        options("g", tmp_path, annotators={"x": {"kind": "nothing"}})
    wrong = {"x": {"kind": "function", "function": "no_such:thing"}}
    missing = options(store("g", []), tmp_path / "s", annotators=wrong)
    with pytest.raises(ConfigError, match="function: no_such:thing cannot be imported: ModuleNotFoundError"):
        run_annotate(missing)
    assert not (tmp_path / "s").exists()  # nothing is left that holds to the wrong name


@pytest.mark.multiprocess
def test_two_processes_share_the_prompts(store, tmp_path, monkeypatch) -> None:
    generations = store("g", [generation(row, TEXTS) for row in range(11)])
    (tmp_path / "checks.py").write_text("def score(prompt, responses):\n    return [len(text) for text in responses]\n")
    config = {"generations": generations, "output_dir": str(tmp_path / "s"), "use_cpu": True,
              "annotators": {"f": {"kind": "function", "function": "checks:score"}}}  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    text = run([*launcher, "-m", "simpo.cli", "annotate", str(tmp_path / "c.yaml")])
    assert "11 prompts annotated" in text
    assert {record["id"] for record in read_records(tmp_path / "s")} == {f"p{row}" for row in range(11)}
    assert len({path.name[:13] for path in (tmp_path / "s").glob("records-*")}) == 2


class FakeJudge:
    """Answers by a rule on the two responses; `rule` returns what the judge would say, or a Failure."""

    batch_size = None

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.asked: list[str] = []

    def generate(self, requests: Any) -> Iterator[Result]:
        results = []
        for number, request in enumerate(requests):
            text = request.messages[0]["content"]
            self.asked.append(text)
            sides = [text.split(f"[Response {side}]\n")[1].split(f"\n[End of response {side}]")[0] for side in "AB"]
            said = self.rule(*sides)
            results.append(Result(number, said if isinstance(said, Failure) else Sample(said, "stop", 1)))
        random.Random(0).shuffle(results)  # answers come in any order
        yield from results

    def close(self) -> None: ...


def judged(rule: Any, responses: list[str]) -> Any:
    judge = Judge(JudgeSettings("j", "http://localhost"), FakeJudge(rule))
    return judge.score([Item("p", 0, "Q?", responses)])[0]


def longer(a: str, b: str) -> str:
    return "so: " + ("[[C]]" if len(a) == len(b) else "[[A]]" if len(a) > len(b) else "[[B]]")


def test_judge_compares_every_two_in_both_orders() -> None:
    assert judged(longer, ["a", "bbb", "cc"]).scores == [0, 1, 0.5]
    assert judged(longer, ["aa", "bb", "c"]).scores == [0.75, 0.75, 0]
    engine = FakeJudge(longer)
    Judge(JudgeSettings("j", "u"), engine).score([Item("p", 0, "Q?", ["x", "y", "z"])])
    assert len(engine.asked) == 6 and all("[Conversation]\nQ?\n" in text for text in engine.asked)


def test_a_judge_that_likes_the_first_place_has_no_preference() -> None:
    assert judged(lambda a, b: "[[A]]", ["a", "b", "c"]).scores == [0.5, 0.5, 0.5]


def test_what_cannot_be_read_is_null_and_no_tie() -> None:
    scored = judged(lambda a, b: "A is better" if (a, b) == ("a", "bbb") else longer(a, b), ["a", "bbb", "cc"])
    assert scored.scores == [None, None, 0.5]
    assert scored.problems == ["responses 0 and 1: no verdict in the judge's answer: ...'A is better'"]
    failed = judged(lambda a, b: Failure("HTTP 400") if a == "cc" else longer(a, b), ["a", "bbb", "cc"])
    assert failed.scores == [None] * 3 and "no answer of the judge: HTTP 400" in failed.problems[0]


def test_templates_of_judges(tmp_path) -> None:
    (tmp_path / "t.jinja").write_text("{{ conversation }} {{ response_a }} [[A]]")
    with pytest.raises(ConfigError, match=r"does not hold \{\{ response_b"):
        read_template(str(tmp_path / "t.jinja"))
    (tmp_path / "t.jinja").write_text("{{ conversation }} {{ answer }}")
    with pytest.raises(ConfigError, match="'answer' is undefined"):
        read_template(str(tmp_path / "t.jinja"))


def test_a_judge_behind_a_server(store, tmp_path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == "/v1/chat/completions" and body["model"] == "j" and body["temperature"] == 0
            said = next(FakeJudge(longer).generate([_AsRequest(body["messages"])])).outcome.text
            choice = {"message": {"content": said}, "finish_reason": "stop"}
            answer = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    judge = {"judge": {"kind": "judge", "model": "j", "base_urls": url}}
    run_annotate(options(store("g", [generation(row, TEXTS) for row in range(4)]), tmp_path / "s", annotators=judge))
    server.shutdown()
    assert [record["scores"]["judge"] for record in read_records(tmp_path / "s")] == [[0, 0.5, 1]] * 4


class _AsRequest:
    def __init__(self, messages: Any) -> None:
        self.messages = messages


def test_agreement() -> None:
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert kendall_tau([1, 2, 2, 3], [1, 2, 3, 3]) == pytest.approx(0.8)  # scipy.stats.kendalltau
    assert math.isnan(kendall_tau([1, 1], [1, 2]))
    found = agreement("a", "b", [([1, 2, 3], [3, 2, 1]), ([1, None, 3], [1, 9, 3]), ([1, 1], [1, 2]), ([1], [1])])
    assert (found.prompts, found.tau, found.same_best) == (3, 0, pytest.approx(2 / 3))
    assert agreement_table([{"a": [1, 2]}]) == []
    assert "a and b        1          1.000     100.0%" in agreement_table([{"a": [1, 2], "b": [0, 5]}])[1]
