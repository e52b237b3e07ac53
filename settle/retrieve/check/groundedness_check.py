"""Whether a groundedness model tells supported sentences from others, on sentences of the collection's own passages."""

import random
import re
from collections.abc import Iterator, Sequence

import numpy as np

from settle.base.event_log import Events
from settle.base.events import Say
from settle.base.statistics import wilson
from settle.retrieve.answer.groundedness import GroundednessCheck, store_check
from settle.retrieve.answer.pair_models import PairModel, pair_model
from settle.retrieve.check.calibration import LEAST, threshold
from settle.retrieve.index.catalogue import Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import sentences, words

PASSAGES = 80  # that give a sentence each
FEWEST_WORDS = 5  # of a sentence
LEAST_RIGHT = 0.8  # lower bound of each share from which on the model is trusted

Pair = tuple[str, str]  # a passage and a sentence


def check_groundedness(collection: Collection, events: Events, seed: int) -> None:
    """Check the groundedness model of the store, if there is one, store the result, and say what it is."""
    model = pair_model("ground")
    if model is None:
        return
    supported, others = pairs_of(collection, seed)
    if min(len(supported), len(others)) < LEAST:
        events.emit(Say(text=f"too few sentences to calibrate {model.name}: it is not used"))
        return
    found = calibrated(model, supported, others)
    store_check(collection.catalogue, found)
    verdict = "it checks the sentences of answers" if found.is_trusted else "it is not used"
    shares = f"accepts {found.accepted[0]:.0%} of supported sentences and rejects {found.rejected[0]:.0%} of others"
    events.emit(Say(text=f"{model.name} {shares}: {verdict}"))


def calibrated(model: PairModel, supported: Sequence[Pair], others: Sequence[Pair]) -> GroundednessCheck:
    """Return the threshold that accepts 95 % of the supported, at most the model's own, and what it then rejects."""
    yes, no = np.array(model.logits(supported)), np.array(model.logits(others))
    least = min(0.0, threshold(yes))
    accepted, rejected = wilson((yes >= least).tolist()), wilson((no < least).tolist())
    is_trusted = min(accepted.low, rejected.low) >= LEAST_RIGHT
    return GroundednessCheck(
        model.sha256, least, min(len(yes), len(no)), (accepted.value, accepted.low), (rejected.value, rejected.low),
        is_trusted,
    )  # fmt: skip


def pairs_of(collection: Collection, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return passages with a sentence of theirs, and with one that they do not support.

    That is a sentence of the passage that is nearest in meaning, or their own with other numbers.
    """
    passages = _all(collection)
    chosen = random.Random(seed).sample(passages, min(PASSAGES, len(passages)))
    vectors = collection.catalogue.passages.vectors([passage.id for passage in chosen])
    matrix = np.array([vectors[passage.id] for passage in chosen])
    near = matrix @ matrix.T - 2 * np.eye(len(chosen)) if len(chosen) else matrix
    own = [_sentence(passage) for passage in chosen]
    supported, others = [], []
    for place, (passage, sentence) in enumerate(zip(chosen, own, strict=True)):
        if not sentence:
            continue
        supported.append((passage.text, sentence))
        if changed := _renumbered(sentence):
            others.append((passage.text, changed))
        elsewhere = [own[n] for n in np.argsort(-near[place]).tolist() if own[n] and own[n] not in passage.text]
        others += [(passage.text, elsewhere[0])] if elsewhere else []
    return supported, others


def _all(collection: Collection) -> list[Passage]:
    found: list[Passage] = []
    while page := collection.catalogue.passages.page(found[-1].id if found else 0):
        found += page
    return found


def _sentence(passage: Passage) -> str:
    """Return the longest sentence of a passage, "" where all are short."""
    long: Iterator[str] = (one for one in sentences(passage.text) if len(words(one)) >= FEWEST_WORDS)
    return max(long, key=len, default="")


def _renumbered(sentence: str) -> str:
    """Return a sentence with another first number, "" where it has none."""
    changed = re.sub(r"\d+", lambda match: str(int(match[0]) * 2 + 1), sentence, count=1)
    return changed if changed != sentence else ""
