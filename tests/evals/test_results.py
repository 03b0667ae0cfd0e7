"""A result survives its file, and a file that is none is refused."""

import pytest

from simpo.errors import DataError
from simpo.evals.results import Metric, Result, read_result, write_result

RESULT = Result("arena_hard", "mine", {"win_rate": Metric(36.5, "%", 34.0, 38.9, 1.2)}, "judge", {"games": 1000})


def test_written_is_read(tmp_path) -> None:
    path = write_result(tmp_path / "new", RESULT)
    assert read_result(path) == read_result(tmp_path / "new") == RESULT


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "benchmark": "x"}'])
def test_what_is_no_result_is_refused(tmp_path, text) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=r"results\.json"):
        read_result(tmp_path)


def test_missing(tmp_path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_result(tmp_path)
