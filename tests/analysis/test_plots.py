"""Pictures: everything that is to be seen is drawn, and nothing of the text is cut off or covered."""

import builtins
import random
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from simpo.analysis import plots, style
from simpo.analysis.generations import generation_statistics
from simpo.analysis.statistics import (
    MarginsByLength,
    accuracy,
    contingency,
    distribution,
    divergence,
    length_correlation,
    length_edges,
    margins,
    margins_by_length,
    rewards,
)
from simpo.analysis.titles import of_margins_by_length
from simpo.errors import ConfigError, DataError
from simpo.estimates import mean
from tests.analysis.made import population, scores

matplotlib = pytest.importorskip("matplotlib")

MODELS = {
    "SFT": {"seed": 0, "r": 0.1, "margin": 0.03},
    "SimPO": {"seed": 1, "r": 0.15, "margin": 0.3, "spread": 0.4},
    "SimPO, no length norm.": {"seed": 2, "r": 0.5, "margin": 0.1, "slope": 0.15, "spread": 0.35},
}
LONG = {f"outputs/llama-3-8b-base-simpo-gamma-{gamma}-beta-10-lr-6e-7": gamma for gamma in range(9)}


def against_first(models):
    """Scores of made-up models, with those of the first as the initial policy's."""
    made = {name: population(1500, **settings) for name, settings in models.items()}
    first = next(iter(made.values()))
    rng = np.random.default_rng(0)
    found = {}
    for name, pairs in made.items():
        if pairs is first:
            found[name] = pairs.against(first)
            continue
        sums = (first.chosen_average * pairs.chosen_lengths, first.rejected_average * pairs.rejected_lengths)
        noise = rng.normal(0.05, 0.1, (2, len(pairs)))
        found[name] = scores(
            pairs.chosen, pairs.rejected, np.column_stack([pairs.chosen_lengths, pairs.rejected_lengths]),
            ref_chosen=np.minimum(sums[0] + noise[0] * pairs.chosen_lengths, 0),
            ref_rejected=np.minimum(sums[1] + noise[1] * pairs.rejected_lengths, 0),
        )  # fmt: skip
    return found


def texts_of(name, loop):
    rng = random.Random(name)
    responses = [[rng.randrange(400) for _ in range(int(rng.lognormvariate(5.3, 0.5)) + 1)] for _ in range(60)]
    broken = [[*one[:30], *([1, 2, 3] * 160)] if rng.random() < loop else one for one in responses]
    return broken, [len(one) < 510 and rng.random() > loop for one in broken]


def gallery(models):
    """Every figure, by name, of made-up models."""
    made = against_first(models)
    edges = length_edges(next(iter(made.values())))

    def of_each(statistic):
        return {name: statistic(pairs) for name, pairs in made.items()}

    return {
        "margins_by_length": plots.margins_by_length(of_each(lambda one: margins_by_length(one, edges=edges))),
        "logps_against_length": plots.logps_against_length(of_each(length_correlation)),
        "margin_distributions": plots.margin_distributions(of_each(lambda one: distribution(margins(one)))),
        "reward_distributions": plots.reward_distributions(
            of_each(lambda one: distribution(rewards(one, beta=2)[0])), unit="beta 2"
        ),
        "accuracies": plots.accuracies(
            of_each(lambda one: {"reward": accuracy(one), "sum likelihood": accuracy(one, "sum")})
        ),
        "reward_against_likelihood": plots.reward_against_likelihood(of_each(contingency)),
        "divergences": plots.divergences(of_each(divergence)),
        "generations": plots.generations(
            {name: generation_statistics(*texts_of(name, min(0.9, at * 0.4))) for at, name in enumerate(models)}
        ),
    }


SETS = {
    "one": {"SimPO": MODELS["SimPO"]},
    "three": MODELS,
    "nine": {name: {"seed": at, "margin": 0.05 * at, "spread": 0.2 + 0.03 * at} for at, name in enumerate(LONG)},
}


@pytest.fixture(scope="module", params=SETS)
def figures(request):
    """Drawn once, since laying out takes most of the time."""
    found = gallery(SETS[request.param])
    for figure in found.values():
        figure.canvas.draw()
    return found


def visible_texts(figure):
    """Texts of a drawn figure with their boxes in pixels; of ticks those within the axes."""
    ticks = {
        text for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels(which="both")
    }
    shown = [
        text
        for axes in figure.axes
        if axes.get_visible()
        for axis in (axes.xaxis, axes.yaxis)
        for text in drawn_ticks(axis)
    ]
    for text in figure.findobj(matplotlib.text.Text):
        hidden = text.axes is not None and not text.axes.get_visible()
        if text not in ticks and text.get_visible() and not hidden and text.get_text().strip():
            shown.append(text)
    return [(text.get_text(), text.get_window_extent()) for text in shown]


def drawn_ticks(axis):
    """Labels of the ticks within the axes."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]


def test_no_text_is_cut_off(figures):
    for name, figure in figures.items():
        whole = figure.bbox
        for text, box in visible_texts(figure):
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1, (name, text)


def test_no_labels_of_ticks_cover_each_other(figures):
    for name, figure in figures.items():
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                boxes = [label.get_window_extent() for label in drawn_ticks(axis) if axes.get_visible()]
                assert not any(one.overlaps(other) for one, other in combinations(boxes, 2)), name


def test_titles_stand_clear_and_axes_are_labelled(figures):
    for name, figure in figures.items():
        title = figure._suptitle.get_window_extent()
        assert title.x1 <= figure.bbox.x1, name
        for axes in figure.axes:
            if not axes.get_visible():
                continue
            assert not title.overlaps(axes.get_tightbbox()), name
            own = axes.get_xlabel() or (figure.get_supxlabel())
            assert own, name


def test_a_picture_is_800_pixels_wide_and_small(figures, tmp_path):
    for name in ("logps_against_length", "divergences"):  # the largest, and one without a legend
        path = tmp_path / f"{name}.png"
        figures[name].savefig(path)
        width, height = np.frombuffer(path.read_bytes()[16:24], dtype=">u4")  # where a PNG has them
        assert width == 800 and 200 < height < 2200 and path.stat().st_size < 450_000, name


def test_drawing_loads_neither_torch_nor_pyplot():
    code = (
        "import sys; from simpo.analysis import plots; from simpo.analysis.statistics import distribution\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
        "plots.margin_distributions({'A': distribution([1.0, 2.0])})\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_style_does_not_leak():
    """Settings of a caller's own pictures stay as they are, and do not reach these."""
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        (axes,) = plots.margin_distributions({"A": distribution([1.0, 2.0])}).axes
        assert dict(matplotlib.rcParams) == before
    assert axes.xaxis.label.get_size() == 10 and axes.get_xticklabels()[0].get_size() == 10


def test_titles_say_what_is_seen():
    titles = {name: figure.get_suptitle().replace("\n", " ") for name, figure in gallery(MODELS).items()}
    assert titles["margins_by_length"] == "Margin below 0: SimPO, no length norm. in 3 of 10 bins of length"
    assert titles["logps_against_length"].startswith("Log-prob per token rises with length most in SimPO")
    assert "most in SimPO, no length norm. (sd 0.71)" in titles["margin_distributions"]
    assert "SFT" in titles["margin_distributions"].partition("least in")[2]
    assert titles["generations"].startswith("Responses end by themselves least often in SimPO, no length norm.:")
    assert titles["accuracies"] == "Reward order is right most often in SimPO: 67.5%"
    assert titles["divergences"].startswith("Chosen responses change by up to +0.25 nats per token in SimPO")
    assert titles["reward_against_likelihood"].startswith("Likelihood reverses 12% to 17% of")
    alone = {name: figure.get_suptitle() for name, figure in gallery(SETS["one"]).items()}
    assert not any("SimPO" in title for title in alone.values())
    assert alone["margins_by_length"] == "No bin of length has a margin clearly below 0"


def test_titles_claim_no_order_that_chance_explains():
    """Two samples of one population: nothing tells the models apart."""
    one = {name: settings | {"seed": 20 + at} for at, (name, settings) in enumerate({"A": {}, "B": {}}.items())}
    made = {name: population(300, **settings) for name, settings in one.items()}
    drawn = {
        "logps": plots.logps_against_length({name: length_correlation(pairs) for name, pairs in made.items()}),
        "density": plots.margin_distributions({name: distribution(margins(pairs)) for name, pairs in made.items()}),
        "accuracies": plots.accuracies({name: {"reward": accuracy(pairs)} for name, pairs in made.items()}),
        "kl": plots.divergences({name: divergence(pairs.against(pairs)) for name, pairs in made.items()}),
    }
    titles = {name: figure.get_suptitle().replace("\n", " ") for name, figure in drawn.items()}
    assert titles["logps"] == "Log-prob per token does not clearly rise with length"
    assert titles["density"].startswith("Margins have sd 0.")
    assert titles["accuracies"].endswith("of pairs, none clearly ahead")
    assert titles["kl"] == "The log-prob of chosen responses has not clearly changed"


def test_what_is_drawn_is_what_was_measured():
    pairs = population(600, seed=3)
    found = margins_by_length(pairs)
    (axes,) = plots.margins_by_length({"A": found}).axes
    line = axes.containers[0].lines[0]
    assert line.get_xdata().tolist() == found.centres.tolist()
    assert line.get_ydata().tolist() == [one.value for one in found.bins]
    (axes,) = plots.margin_distributions({"A": distribution(margins(pairs))}).axes
    assert axes.lines[0].get_ydata().tolist() == distribution(margins(pairs)).density.tolist()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_pairs_can_be_drawn(count, recwarn):
    """Intervals that are not there are left out."""
    pairs = scores([-5] * count, [-6] * count, ref_chosen=[-5] * count, ref_rejected=[-6] * count)
    one = {
        "margins": plots.margins_by_length({"A": margins_by_length(pairs)}),
        "logps": plots.logps_against_length({"A": length_correlation(pairs)}),
        "density": plots.margin_distributions({"A": distribution(margins(pairs))}),
        "tables": plots.reward_against_likelihood({"A": contingency(pairs)}),
        "kl": plots.divergences({"A": divergence(pairs)}),
        "text": plots.generations({"A": generation_statistics([[]] * count, [True] * count)}),
    }
    for figure in one.values():
        figure.canvas.draw()
        assert "nan" not in " ".join(text for text, _ in visible_texts(figure))
    assert [str(warning.message) for warning in recwarn] == []


def test_the_initial_policy_alone_has_sound_axes():
    pairs = population(50, seed=0)
    figure = plots.divergences({"SFT": divergence(pairs.against(pairs))})
    figure.canvas.draw()
    assert [round(float(end), 3) for end in figure.axes[1].get_xlim()] == [-0.06, 0.06]


@pytest.mark.parametrize(
    "names",
    [["x" * 100], ["SimPO", "DPO"], list(LONG), [f"{'a' * 20}-{at}-{'b' * 20}" for at in range(3)],
     ["a" * 40, "a" * 41], ["one/" * 20, "two/" * 20], ["run", "run-" * 10]],
)  # fmt: skip
def test_names_fit_and_stay_apart(names):
    found = style.labels(names)
    assert len(set(found)) == len(names) and max(map(len, found)) <= 24
    if max(map(len, names)) <= 24:
        assert found == names


def test_looks_do_not_repeat():
    looks = [tuple(style.look(at).values()) for at in range(21)]
    assert len(set(looks)) == 21


def test_nothing_to_draw_is_an_error():
    with pytest.raises(DataError, match="needs the results of one model at least"):
        plots.margins_by_length({})
    with pytest.raises(DataError, match="needs a score at least"):
        plots.accuracies({"A": {}})


def test_the_axis_says_which_likelihood():
    pairs = population(30, seed=0)
    pairs = pairs.against(pairs)
    tables = {kind: contingency(pairs, kind) for kind in ("average", "sum")}
    labels = {kind: plots.reward_against_likelihood({"A": found}).get_supxlabel() for kind, found in tables.items()}
    assert labels == {"average": "order by log-prob per token", "sum": "order by summed log-prob"}
    with pytest.raises(DataError, match="the same for all models"):
        plots.reward_against_likelihood(dict(zip("AB", tables.values(), strict=True)))


def test_generations_draw_what_all_models_have():
    """Looping has a panel; distinct n-grams are of the largest n in common."""
    responses, stopped = [[1, 2] * 20, list(range(9)), [5]], [False, True, True]
    found = {"A": generation_statistics(responses, stopped), "B": generation_statistics(responses, stopped, (1, 2))}
    panels = {axes.get_xlabel(): axes for axes in plots.generations(found).axes if axes.get_visible()}
    assert len(panels) == 5 and "distinct 2-grams (%)" in panels
    (looping,) = (axes for label, axes in panels.items() if label == "looping (%)")
    assert looping.containers[0].lines[0].get_xdata() == pytest.approx([100 / 3])
    for orders in ((), (3,)):
        with pytest.raises(DataError, match="orders for all, one at least"):
            plots.generations(
                found
                | {"C": generation_statistics(responses, stopped, orders)}
                | ({} if not orders else {"B": generation_statistics(responses, stopped, (1,))})
            )


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"pip install 'simpo\[plots\]'"):
        plots.margin_distributions({"A": distribution([1.0, 2.0])})


def test_no_bin_is_below_0_by_chance_alone() -> None:
    """Of sets without any margin, at most one in twenty says that a bin is below 0 (ten bins each)."""
    rng = np.random.default_rng(0)
    said = 0
    for _ in range(200):
        bins = [mean(rng.normal(size=200)) for _ in range(10)]
        found = MarginsByLength(np.arange(11), np.arange(10.0), bins, bins[0], bins[0], bins[0])
        said += "Margin below 0" in of_margins_by_length({"m": found})
    assert said <= 10
