"""Scores of pairs: read as written, joined by row, refused where they cannot be right."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpo.analysis.pairs import COLUMNS, REFERENCE_COLUMNS, SOURCE_COLUMN, PairScores, read_pairs
from simpo.errors import DataError
from simpo.evals.pairs.measure import ScoredPairs, write_pairs

TABLE = {
    "row": [4, 9],
    "chosen": [-3.0, -8.0],
    "rejected": [-6.0, -4.0],
    "chosen_lengths": [2, 4],
    "rejected_lengths": [3, 4],
}


def written(path, table):
    pq.write_table(pa.table(table), path)
    return path


def test_a_file_is_read(tmp_path):
    extra = {"ref_chosen": [-3.5, -7.0], "ref_rejected": [-5.0, -4.0], "prompt": ["a", "b"]}
    pairs = read_pairs(written(tmp_path / "pairs.parquet", TABLE | extra))
    assert len(pairs) == 2 and pairs.row.tolist() == [4, 9] and pairs.chosen_lengths.dtype == np.int64
    assert pairs.chosen_average.tolist() == [-1.5, -2] and pairs.rejected_average.tolist() == [-2, -1]
    assert [ratios.tolist() for ratios in pairs.log_ratios()] == [[0.5, -1], [-1, 0]]


def test_columns_are_the_fields():
    assert tuple(PairScores.__dataclass_fields__) == (*COLUMNS, *REFERENCE_COLUMNS, SOURCE_COLUMN)


def test_float32_becomes_float64(tmp_path):
    table = TABLE | {"chosen": pa.array([-3.0, -8.0], pa.float32()), "row": pa.array([0, 1], pa.int32())}
    pairs = read_pairs(written(tmp_path / "pairs.parquet", table))
    assert pairs.chosen.dtype == np.float64 and pairs.row.dtype == np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": [-3.0, None]}, "column chosen has 1 empty cells"),
        ({"chosen": [-3.0, float("nan")]}, "row 9: chosen is nan, but must be a summed log-probability, 0 at most"),
        ({"rejected": [3.0, -1.0]}, "row 4: rejected is 3, but must be a summed log-probability"),
        ({"chosen_lengths": [2, 0]}, "row 9: chosen_lengths is 0, but must be a number of tokens, 1 at least"),
        ({"rejected_lengths": [2.5, 3.0]}, "row 4: rejected_lengths is 2.5, but must be"),
        ({"row": [4, 4]}, "row 4 is there 2 times"),
        ({"chosen": ["a", "b"]}, "chosen holds something that is no number"),
        ({"ref_chosen": [-1.0, -1.0]}, "of the initial policy are there for one side only"),
    ],
)
def test_a_bad_value_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(written(tmp_path / "pairs.parquet", TABLE | change))
    assert "pairs.parquet" in str(caught.value)


def test_a_missing_column_is_named(tmp_path):
    table = {name: values for name, values in TABLE.items() if name not in ("row", "rejected_lengths")}
    with pytest.raises(DataError, match="has no column row, rejected_lengths; scores of pairs have row, chosen"):
        read_pairs(written(tmp_path / "pairs.parquet", table))


def test_no_such_file_and_no_parquet(tmp_path):
    (tmp_path / "text").write_text("row,chosen")
    for name in ("none", "text"):
        with pytest.raises(DataError, match=f"{name} cannot be read as a parquet file of scores"):
            read_pairs(tmp_path / name)


def test_arrays_must_fit():
    with pytest.raises(DataError, match=r"rejected has the shape \(1,\), row \(2,\)"):
        PairScores(**TABLE | {"rejected": [-1.0]})
    with pytest.raises(DataError, match="a pair at least"):
        PairScores(*([[]] * 5))


def test_the_initial_policy_is_joined_by_row():
    pairs = PairScores(**TABLE)
    initial = PairScores([9, 7, 4], [-1, -2, -3], [-4, -5, -6], [4, 1, 2], [4, 1, 3])
    joined = pairs.against(initial)
    assert joined.ref_chosen.tolist() == [-3, -1] and joined.ref_rejected.tolist() == [-6, -4]
    assert pairs.ref_chosen is None
    with pytest.raises(DataError, match="no scores of 1 of 3 pairs, the first is row 7"):
        initial.against(pairs)
    with pytest.raises(DataError, match="row 9: rejected_lengths is 4 here and 5 under the initial policy"):
        pairs.against(PairScores([9, 4], [-1, -3], [-4, -6], [4, 2], [5, 3]))


def test_log_ratios_need_the_initial_policy():
    with pytest.raises(DataError, match="needs log-probs of the initial policy, the columns ref_chosen and ref_rejec"):
        PairScores(**TABLE).log_ratios()


def evaluated(path, sources, rows, chosen, lengths=(2, 4, 6)):
    """A file of simpo eval pairs."""
    rejected = np.array([-9.0, -8.0, -7.0])
    sizes = np.array(lengths)
    write_pairs(
        path, ScoredPairs(sources, np.array(rows), sizes + 9, sizes, sizes + 1, np.array(chosen), rejected), beta=2.0
    )
    return read_pairs(path)


def test_a_file_of_eval_pairs_is_read_with_rows_that_sources_share(tmp_path):
    model = evaluated(tmp_path / "a.parquet", ["one/test", "two/test", "one/test"], [0, 0, 1], [-3.0, -4.0, -5.0])
    assert model.row.tolist() == [0, 0, 1] and model.source.tolist() == ["one/test", "two/test", "one/test"]
    initial = evaluated(
        tmp_path / "b.parquet", ["two/test", "one/test", "one/test"], [0, 1, 0], [-1.0, -2.0, -3.5], (4, 6, 2)
    )
    assert model.against(initial).ref_chosen.tolist() == [-3.5, -1.0, -2.0]


def test_rows_of_other_sources_are_not_joined(tmp_path):
    model = evaluated(tmp_path / "a.parquet", ["one"] * 3, [0, 1, 2], [-3.0, -4.0, -5.0])
    other = evaluated(tmp_path / "b.parquet", ["two"] * 3, [0, 1, 2], [-3.0, -4.0, -5.0])
    with pytest.raises(DataError, match="no scores of 3 of 3 pairs, the first is one row 0"):
        model.against(other)
    with pytest.raises(DataError, match="give both the column source, or neither"):
        model.against(PairScores([0, 1, 2], *[[-1.0] * 3] * 2, *[[2] * 3] * 2))
    with pytest.raises(DataError, match=r"a.parquet: one row 1 is there 2 times"):
        evaluated(tmp_path / "a.parquet", ["one"] * 3, [0, 1, 1], [-3.0, -4.0, -5.0])
    with pytest.raises(DataError, match=r"source has the shape \(1,\), row \(2,\)"):
        PairScores(**TABLE, source=["one"])
