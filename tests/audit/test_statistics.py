"""Numbers about a set, against values worked out by hand."""

import re

import numpy as np
import pytest

from simpo.audit.plots import histogram_svg
from simpo.audit.statistics import difference_histogram, epoch_tokens, length_bias, length_histogram


def test_epoch_tokens():
    prompt, chosen, rejected = np.array([10, 20]), np.array([5, 1]), np.array([3, 9])
    found = epoch_tokens(prompt, chosen, rejected, pairs_per_batch=2)
    assert (found.padded, found.packed, found.shared) == (4 * 29, 78, 48)
    assert found.saved_by_packing == pytest.approx(1 - 78 / 116) and found.saved_by_sharing == pytest.approx(30 / 78)
    alone = epoch_tokens(prompt, chosen, rejected, pairs_per_batch=1)
    assert alone.padded == 2 * 15 + 2 * 29


def test_the_last_padded_batch_may_be_smaller():
    lengths = np.array([4, 4, 4])
    assert epoch_tokens(lengths, lengths, lengths, pairs_per_batch=2).padded == 3 * 2 * 8


def test_length_bias_against_numpy():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(1, 50, 500), rng.integers(1, 40, 500)
    bias = length_bias(chosen, rejected)
    label = np.repeat([1.0, 0.0], 500)
    assert bias.correlation == pytest.approx(np.corrcoef(label, np.concatenate([chosen, rejected]))[0, 1])
    assert bias.chosen_longer + bias.rejected_longer + bias.equal == pytest.approx(1)
    assert bias.mean_difference == pytest.approx((chosen - rejected).mean())


def test_equal_lengths():
    bias = length_bias(np.full(4, 7), np.full(4, 7))
    assert (bias.equal, bias.correlation, bias.mean_difference) == (1, 0, 0)
    assert sum(bias.histogram.counts) == 4


@pytest.mark.parametrize("values", [[1], [3, 3, 3], list(range(1000)), [1] * 99 + [100_000]])
def test_histograms_count_everything(values):
    values = np.array(values)
    for histogram in (length_histogram(values), difference_histogram(values - 5)):
        assert sum(histogram.counts) == len(values) and len(histogram.edges) == len(histogram.counts) + 1
        assert len(set(np.diff(histogram.edges).tolist())) == 1


def test_the_tail_is_in_the_last_bin():
    histogram = length_histogram(np.array([10] * 990 + [20] * 9 + [100_000]))
    assert histogram.above and histogram.edges[-1] < 100 and histogram.counts[-1] == 1
    assert not length_histogram(np.arange(96)).above


def test_differences_are_centred():
    histogram = difference_histogram(np.array([-30, 0, 0, 30]))
    assert histogram.edges[0] == -histogram.edges[-1] and len(histogram.counts) % 2 == 1
    assert histogram.counts[len(histogram.counts) // 2] == 2


@pytest.mark.parametrize("largest", [1, 7, 600, 1024, 99_999])
def test_no_label_is_cut_off(largest):
    for histogram in (length_histogram(np.arange(largest + 1)), difference_histogram(np.arange(-largest, largest + 1))):
        svg = histogram_svg(histogram, "lengths", ["chosen"] * len(histogram.counts))
        width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
        labels = re.findall(r'<text class="tick" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', svg)
        assert len(labels) >= 5
        for x, y, anchor, text in labels:
            size = 7 * len(text)  # wider than 12 pixels of any usual font
            left = float(x) - size * {"end": 1, "middle": 0.5}[anchor]
            assert left >= 0 and left + size <= width and 9 <= float(y) <= height, text
