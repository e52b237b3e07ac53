"""How long a choice takes."""

from settle.jobs.choose.forecast import OTHER_SECONDS, Pace, forecast
from settle.jobs.choose.ways import DOCUMENTS, PROMPT, TUNE, TUNE_DOCUMENTS, ZERO_SHOT


def test_each_way_takes_its_building_and_its_answers():
    pace = Pace(plain=1.0, with_passages=4.0, tuning=100.0, steps=60.0, longer=5.0)
    ways = {ZERO_SHOT: False, PROMPT: False, DOCUMENTS: True, TUNE: False, TUNE_DOCUMENTS: True}
    parts = forecast(pace, train=72, test=48, ways=ways, is_closed=False)
    assert parts[ZERO_SHOT] == 48 + OTHER_SECONDS
    assert parts[PROMPT] == 60 + 48
    assert parts[DOCUMENTS] == 48 * 4
    assert parts[TUNE] == 100 + OTHER_SECONDS + 48
    # half as many passes over rows five times as long; reading, proof and export take as long as without passages
    assert parts[TUNE_DOCUMENTS] == 40 + 60 * 2.5 + OTHER_SECONDS + 48 * 4
    assert parts["triage"] == 30 * (2 * 1 + 2 * 4)
    assert "documents" not in forecast(pace, 72, 48, {ZERO_SHOT: False}, True)
