"""How long a choice takes."""

from settle.jobs.choose.forecast import OTHER_SECONDS, Costs, forecast, forecast_triage
from settle.jobs.choose.triage import AS_IT_IS, EXAMPLES, GOLD
from settle.jobs.choose.way import DECIDE, DOCUMENTS, PROMPT, TUNE, TUNE_DOCUMENTS, ZERO_SHOT

PACE = Costs(
    plain=1.0, with_examples=2.0, with_passages=4.0, search=0.5, tuning=100.0, steps=60.0, deciding=150.0, longer=5.0
)
WAYS = {ZERO_SHOT: False, PROMPT: False, DOCUMENTS: True, TUNE: False, TUNE_DOCUMENTS: True, DECIDE: False}


def test_each_way_takes_its_building_and_its_answers():
    parts = forecast(PACE, 72, 48, WAYS)
    assert parts[ZERO_SHOT] == 48
    assert parts[PROMPT] == 60 * 1.6 + 48 * 2  # prompts with no, four and eight examples are tried
    assert parts[DOCUMENTS] == 48 * 0.5 + 8 * (4 + 5) + 48 * 4  # two prompts beside passages, one of them with examples
    assert parts[TUNE] == 100 + OTHER_SECONDS + 48 and parts[DECIDE] == 150 + OTHER_SECONDS + 48
    # half as many passes over rows five times as long; reading, proof and export take as long as without passages
    assert parts[TUNE_DOCUMENTS] == 72 * 0.5 + 40 + 60 * 2.5 + OTHER_SECONDS + 48 * 4
    assert "documents" not in forecast(PACE, 72, 48, {ZERO_SHOT: False})


def test_the_first_look_is_forecast_and_replaces_what_was_known_of_answers():
    assert forecast_triage(PACE, 72, reads=True, has_form=False) == 30 * (1 + 2 + 0.5 + 4 + 5)
    assert forecast_triage(PACE, 20, reads=False, has_form=True) == 20 * (1 + 2 + 1)
    seen = PACE.after({AS_IT_IS: 0.5, EXAMPLES: 1.0}, search=0.2)
    assert forecast(seen, 72, 48, WAYS)[PROMPT] == 60 * 0.8 + 48 and (seen.with_passages, seen.search) == (4.0, 0.2)
    assert seen.after({AS_IT_IS: 0.5, EXAMPLES: 1.0, GOLD: 3.0}, 0.2).with_passages == 3.0
