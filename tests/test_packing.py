"""The layout of a pack, and the dataset that packs."""

import pytest
import torch
from datasets import Dataset

from simpo.batching import MicroBatch
from simpo.packing import PackedDataset, pack_pairs

PAIR = {"prompt_ids": [10, 11, 12], "chosen_ids": [20, 21], "rejected_ids": [30, 31, 32]}
SHORT = {"prompt_ids": [40], "chosen_ids": [50], "rejected_ids": [60]}


def test_shared_layout() -> None:
    pack = pack_pairs([PAIR, SHORT])
    assert pack["input_ids"].tolist() == [[10, 11, 12, 20, 21, 30, 31, 32, 40, 50, 60]]
    assert pack["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 1]]
    # the last prompt position predicts the first token of both responses
    assert pack["source_positions"].tolist() == [2, 3, 2, 5, 6, 8, 8]
    assert pack["target_ids"].tolist() == [20, 21, 30, 31, 32, 50, 60]
    assert [tuple(s) for s in pack["layout"].segments] == [(0, 5, 0, 0), (5, 8, 0, 3), (8, 10, 8, 8), (10, 11, 8, 9)]
    assert pack["chosen_lengths"].tolist() == [2, 1] and pack["rejected_lengths"].tolist() == [3, 1]


def test_unshared_layout_repeats_the_prompt() -> None:
    pack = pack_pairs([PAIR], prefix_sharing=False)
    assert pack["input_ids"].tolist() == [[10, 11, 12, 20, 21, 10, 11, 12, 30, 31, 32]]
    assert pack["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]]
    assert pack["source_positions"].tolist() == [2, 3, 7, 8, 9]
    assert [tuple(s) for s in pack["layout"].segments] == [(0, 5, 0, 0), (5, 11, 5, 5)]


@pytest.mark.parametrize("shared", [True, False])
def test_sources_stand_right_before_their_targets(make_pairs, shared) -> None:
    pairs = make_pairs([(4, 3, 5), (1, 1, 2), (7, 6, 1)])
    pack = pack_pairs(pairs, prefix_sharing=shared)
    scored = iter(zip(pack["source_positions"].tolist(), pack["target_ids"].tolist(), strict=True))
    for pair in pairs:
        for key in ("chosen_ids", "rejected_ids"):
            for i, token in enumerate(pair[key]):
                source, target = next(scored)
                assert target == token
                before = (pair["prompt_ids"] + pair[key])[len(pair["prompt_ids"]) + i - 1]
                assert pack["input_ids"][0, source] == before
                assert pack["position_ids"][0, source] == len(pair["prompt_ids"]) + i - 1


def test_empty_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="0 prompt"):
        pack_pairs([{**PAIR, "prompt_ids": []}])
    with pytest.raises(ValueError, match="0 chosen and 0 rejected"):
        pack_pairs([{**PAIR, "chosen_ids": [], "rejected_ids": []}])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("side", ["chosen_ids", "rejected_ids"])
def test_a_row_of_one_response(side, shared) -> None:
    """The other response is packed and scored as it would be in a whole pair; nothing else of it is there."""
    whole = pack_pairs([PAIR], prefix_sharing=shared)
    pack = pack_pairs([{**PAIR, side: []}, PAIR], prefix_sharing=shared)
    kept = "rejected_ids" if side == "chosen_ids" else "chosen_ids"
    length = len(PAIR[kept])
    assert pack[kept.replace("_ids", "_lengths")].tolist() == [length, length]
    assert pack[side.replace("_ids", "_lengths")][0] == 0
    assert pack["target_ids"][:length].tolist() == list(PAIR[kept])
    sources = pack["source_positions"]
    assert len(sources) == len(pack["target_ids"]) == length + len(whole["target_ids"])
    first = len(pack["input_ids"][0]) - len(whole["input_ids"][0])
    assert (sources[length:] - first).tolist() == whole["source_positions"].tolist()
    read = [pack["input_ids"][0, position].item() for position in sources[:length]]
    assert read == [PAIR["prompt_ids"][-1], *PAIR[kept][:-1]]


@pytest.mark.parametrize("as_list", [True, False])
def test_dataset_packs_micro_batches(as_list) -> None:
    rows = [PAIR, SHORT, PAIR]
    dataset = PackedDataset(rows if as_list else Dataset.from_list(rows))
    assert len(dataset) == 3
    pack = dataset[MicroBatch((1, 0), fillers=1)]
    torch.testing.assert_close(pack["input_ids"], pack_pairs([SHORT, PAIR])["input_ids"])
    assert pack["pair_index"].tolist() == [1, 0]
    assert pack["pair_weights"].tolist() == [1.0, 0.0]
