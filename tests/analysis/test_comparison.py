"""Models side by side: common pairs, paired differences, names, tables and pictures."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from simpo.analysis.comparison import (
    Scored,
    differences,
    gamma_names,
    measures,
    on_common_pairs,
)
from simpo.analysis.generations import generation_statistics
from simpo.analysis.pairs import PairScores
from simpo.analysis.report.models import comparison_page
from simpo.analysis.tables import csv_of, grid_of, label, markdown_table, print_table, show
from simpo.errors import DataError
from simpo.estimates import Estimate, mean
from tests.analysis.made import population, scores


def trained(pairs: PairScores, gain: float, seed: int) -> PairScores:
    """A policy that put the chosen responses so much higher per token, on average over its pairs."""
    rng = np.random.default_rng(seed)
    average = pairs.chosen_average + gain + rng.normal(0, 0.05, len(pairs))
    lengths = np.column_stack([pairs.chosen_lengths, pairs.rejected_lengths])
    return scores(np.minimum(average, -0.01) * pairs.chosen_lengths, pairs.rejected, lengths)


@pytest.fixture
def models() -> list[Scored]:
    start = population(400, seed=0)
    answers = generation_statistics([[1, 2] * 9, [3, 4, 5]], [False, True])
    found = [
        Scored("initial", start, initial=True, answers=answers),
        Scored("A", trained(start, 0.05, 1), objective="simpo", beta=2.0, gamma=0.0, answers=answers),
        Scored("B", trained(start, 0.08, 2), objective="simpo", beta=2.0, gamma=1.0, answers=answers),
    ]
    return on_common_pairs(found)[0]


def of(table, name: str):
    return next(measure for measure in table if measure.name == name)


def spearman_of_four() -> float:
    """Ranks 1, 3.5, 3.5, 2 and 1, 2.5, 4, 2.5."""
    return float(np.corrcoef([1, 3.5, 3.5, 2], [1, 2.5, 4, 2.5])[0, 1])


def test_numbers_are_those_of_the_statistics(models) -> None:
    table = measures(models, beta=2.0)
    start, a, _ = (one.pairs for one in models)
    assert of(table, "margin").of["A"].value == pytest.approx(2 * (a.chosen_average - a.rejected_average).mean())
    assert of(table, "margin").unit == "beta 2" and label(of(table, "margin")) == "margin (beta 2)"
    shorter = a.chosen_lengths < a.rejected_lengths
    assert of(table, "margin, chosen shorter").of["A"].value == pytest.approx(
        2 * (a.chosen_average - a.rejected_average)[shorter].mean()
    )
    biased = Scored("biased", scores([-5, -8, -20, -33], [-8, -9, -20, -30], [(5, 9), (10, 9), (25, 20), (30, 29)]))
    # margins: -1 + 8/9, -0.8 + 1, -0.8 + 1, -1.1 + 30/29; longer by -4, 1, 5, 1
    assert of(measures([biased]), "length rho, margin").of["biased"].value == pytest.approx(spearman_of_four())
    gained = (a.chosen - start.chosen).sum() / a.chosen_lengths.sum()
    assert of(table, "change of chosen log-prob").of["A"].value == pytest.approx(gained)
    assert set(of(table, "reward accuracy, DPO").of) == {"A", "B"}  # not of the initial policy itself
    assert of(table, "answers looping").of["A"].value == 0.5


def test_differences_are_paired(models) -> None:
    """What the models have in common cancels out: the interval is far narrower than that of each, and has the gain."""
    first, other = models[1:]
    table = differences([first, other])
    gain = of(table, "log-prob, chosen").of["B"]
    assert gain.low < 0.03 < gain.high
    own = of(measures([first]), "log-prob, chosen").of["A"]
    assert gain.high - gain.low < 0.5 * (own.high - own.low)
    right = [one.pairs.chosen_average > one.pairs.rejected_average for one in (first, other)]
    assert of(table, "reward accuracy, SimPO").of == {"B": mean(right[1].astype(float) - right[0])}
    assert "A" not in of(table, "margin").of


def test_the_pairs_that_all_have() -> None:
    """In another order and with other pairs: each model is measured on the same ones."""
    start = population(50, seed=0)
    places = start.places()
    found, notes = on_common_pairs([Scored("A", start.only(places[10:])), Scored("B", start.only(places[:30][::-1]))])
    assert [len(one.pairs) for one in found] == [20, 20]
    assert found[0].pairs.places() == found[1].pairs.places() == places[10:30]
    np.testing.assert_array_equal(found[0].pairs.chosen, found[1].pairs.chosen)
    assert notes[0].startswith("A: 20 of its 40 pairs are left out") and notes[1].startswith("B: 10 of its 30")
    with pytest.raises(DataError, match="no pair in common"):
        on_common_pairs([Scored("A", start.only(places[:5])), Scored("B", start.only(places[5:]))])


def test_another_tokenizer_is_said_and_not_compared_by_token() -> None:
    start = population(60, seed=0)
    finer = scores(
        start.chosen, start.rejected, np.column_stack([2 * start.chosen_lengths, 2 * start.rejected_lengths])
    )
    found, notes = on_common_pairs([Scored("start", start, initial=True), Scored("A", start), Scored("B", finer)])
    assert [one.moved for one in found] == [False, True, False]
    assert "B: other token counts than start" in notes[0] and "B: nothing is measured against start" in notes[1]
    table = differences(found[1:])
    assert {measure.name for measure in table} == {"reward accuracy, SimPO", "likelihood accuracy, sum"}
    assert of(table, "likelihood accuracy, sum").of["B"].value == 0


def test_gamma_names_models_that_nothing_else_tells_apart(models) -> None:
    assert gamma_names(models) == {"initial": "initial", "A": "gamma 0", "B": "gamma 1"}
    pairs = models[0].pairs
    for other in (
        Scored("C", pairs, objective="simpo", beta=3.0, gamma=2.0),
        Scored("C", pairs, objective="simpo", beta=2.0, gamma=1.0),
        Scored("C", pairs, objective="dpo", beta=2.0),
    ):
        assert gamma_names([*models, other]) == {}


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_of_the_terminal_is_wider_than_it(models, width: int) -> None:
    file = io.StringIO()
    named = [Scored(f"outputs/a-long-run-of-{one.name}/checkpoint-1000", one.pairs) for one in models]
    print_table(measures(named), "title", Console(file=file, width=width, highlight=False))
    lines = file.getvalue().splitlines()
    assert max(map(len, map(str.rstrip, lines))) <= width
    assert "…" not in "".join(line[20:] for line in lines if "[" in line)  # no number is cut off
    assert file.getvalue().count("length rho, chosen") == {60: 2, 80: 2, 200: 1}[width]


def test_tables_hold_every_number(models) -> None:
    table = measures(models)
    head, rows = grid_of(table)
    assert head == ["", "initial", "A", "B"] and len(rows) == len(table)
    assert markdown_table(["", "a|b_c"], [["x", "1"]]).splitlines()[0] == "|  | a\\|b\\_c |"
    lines = list(csv.DictReader(io.StringIO(csv_of({"models": table}))))
    assert len(lines) == sum(len(measure.of) for measure in table)
    one = next(line for line in lines if (line["measure"], line["model"]) == ("reward accuracy, SimPO", "B"))
    assert float(one["value"]) == pytest.approx(100 * of(table, "reward accuracy, SimPO").of["B"].value)
    assert show(Estimate(float("nan"), 0, 0, 0), "") == show(None, "") == ("", "")
    assert show(Estimate(0.5, float("nan"), float("nan"), 1), "nats", signed=True) == ("+0.50", "")


def test_pictures_are_those_that_the_data_allow(models) -> None:
    pytest.importorskip("matplotlib")
    from simpo.analysis.pictures import draw_all

    names = [picture.name for picture in draw_all(models)]
    without = [Scored(one.name, population(40, seed=1)) for one in models[:1]]
    assert [picture.name for picture in draw_all(without)] == names[:5]
    assert names[5:] == ["reward-against-likelihood.png", "divergences.png", "generations.png"]


def test_the_page_has_everything(models) -> None:
    from simpo.analysis.report.page import render_page

    table = measures(models)
    page = comparison_page(
        models, numbers=table, paired=differences(models[1:]), against="A", pictures=[],
        answers=[("Why <b>?", {"A": "Because."})], notes=["A note."], settings={"pairs": "x.jsonl"},
        files=[("analysis.csv", "numbers")], about="simpo",
    )  # fmt: skip
    text = render_page(page)
    for part in ("A note.", "Why &lt;b&gt;?", "Because.", "Less A.", "gamma", "analysis.csv", "400"):
        assert part in text, part
