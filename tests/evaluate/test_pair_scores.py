"""Scores of pairs, compared."""

import numpy as np
import pytest

from settle.data.batches import Batch
from settle.evaluate.pair_scores import compare_scores


@pytest.mark.parametrize(("label", "kind"), [(1, "answer"), (0, "do not answer")])
def test_pairs_of_one_kind_are_not_compared(label, kind):
    """Two pairs of two tokens a side; the label stands at the end of each passage."""
    targets = np.array([-1, -1, -1, label] * 2)
    bounds = np.arange(0, 9, 2, dtype=np.int32)
    batch = Batch(np.zeros(8, np.int64), targets, bounds, np.zeros(8, np.int64), families=np.array([0, 0, 1, 1]))
    compared = compare_scores(np.zeros(2), np.ones(2), [batch])
    assert compared["verdict"] == "not compared" and f"all 2 pairs that judge {kind};" in str(compared["headline"])
    assert not {"base", "tuned"} & set(compared)  # no figure, and so no NaN in result.json
