"""Generated questions in the words that people use: what is asked stays."""

from random import Random

from settle.retrieve.check.phrases import as_people_ask
from settle.retrieve.index.words import words

ASKED = "what is the interval of the rotation"


def test_what_is_asked_stays_and_the_words_around_it_vary():
    asked = [as_people_ask(ASKED, Random(seed)) for seed in range(400)]
    whole = [text for text in asked if "the interval of the rotation" in text]
    assert len(whole) > 0.85 * len(asked) and len(set(asked)) > 30
    assert (
        0.25
        < sum(text in (ASKED, ASKED.replace("what is", "what's"), ASKED.replace("what is", "whats")) for text in asked)
        / 400
        < 0.45
    )
    assert any("what's" in text for text in asked) and any("anyone" in text for text in asked)


def test_slips_are_few_and_small():
    slipped = [
        text
        for seed in range(400)
        if "the interval of the rotation" not in (text := as_people_ask(ASKED, Random(seed)))
    ]
    assert 0.02 < len(slipped) / 400 < 0.15
    for text in slipped:
        assert {"interv", "rotat"} & {stem[:6] for stem in words(text)} or "interval" in text or "rotation" in text


def test_the_same_seed_words_alike():
    assert as_people_ask(ASKED, Random(3)) == as_people_ask(ASKED, Random(3))
