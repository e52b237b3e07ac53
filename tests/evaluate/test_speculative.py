"""What a pair is told of."""

import pytest

from settle.evaluate.speculative import Pair, Proposing


@pytest.mark.parametrize(
    ("accepted", "says"),
    [(0.75, "75% of what it proposes, up to 4 tokens at a time, is right"), (None, "it is never sure enough")],
)
def test_a_pair_in_one_sentence(accepted, says):
    pair = Pair(10.0, 16.0, Proposing(4), accepted, 3, 90, ((1, 7),), (1.6,), {})
    assert pair.headline.startswith("1.60 times as fast") and says in pair.headline
    assert pair.headline.endswith("2 of 3 answers are the same") and pair.to_json()["accepted"] == accepted
