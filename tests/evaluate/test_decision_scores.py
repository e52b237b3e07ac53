"""Decisions of a live model by their numbers: scores in the rows' own order, temperatures by type, changed orders."""

import numpy as np
import pytest
import torch

from settle.data.decisions.calibration import fit_temperature, probabilities
from settle.data.decisions.prompt import EncodedDecision
from settle.data.decisions.questions import Question
from settle.data.decisions.rows import DecisionRow
from settle.evaluate.calibration import measure_calibration, risk_coverage
from settle.evaluate.decisions import (
    BATCH_TOKENS,
    ORDERS,
    Scored,
    _batches,
    naive_bayes,
    order_changes,
    packed,
    score_rows,
)

CHOICE = Question.from_json({"type": "choice", "instructions": "Which?", "criteria": ["a", "b", "c"]})
PAIR = Question.from_json({"type": "choice", "instructions": "Which?", "criteria": ["a", "b"]})
NOUL = Question.from_json({"type": "noul", "instructions": "Is it?"})


class Encoder:
    """The state's length in tokens, the order of the options before it."""

    def encode(self, row, order):
        ids = np.array([*[100 + place for place in order], *[7] * len(row.state), 5])
        return EncodedDecision(ids, np.array([row.target[place] for place in order], np.float32), row.state)


class Model:
    training, device, evaluated = True, "cpu", 0

    def eval(self):
        self.training, self.evaluated = False, self.evaluated + 1

    def train(self, mode):
        self.training = mode


class Told:
    """Gives each label the score that `say` gives the option behind it and its place; notes the batches."""

    def __init__(self, say):
        self.say, self.batches, self.heat = say, [], 1.0

    def scores(self, model, inputs, bounds, shares):
        assert not model.training
        segments = [inputs[a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]
        self.batches.append([len(segment) for segment in segments])
        out = torch.full(shares.shape, -torch.inf)
        for row, segment in enumerate(segments):
            for place, token in enumerate(t for t in segment if t >= 100):
                out[row, place] = self.say(token - 100, place)
        return out


def row(state, question=CHOICE, best=0):
    target = tuple(float(i == best) for i in range(len(question.options)))
    return DecisionRow(state, "q", question, target, "t.csv:1")


def test_scores_are_in_the_order_of_the_rows_and_of_their_options():
    model, objective = Model(), Told(lambda option, place: 10.0 * option)
    rows = [row("x" * 900), row("y", PAIR, 1), row("z" * 1200, CHOICE, 2), row("w" * 30, NOUL, 1)]
    scored = score_rows(model, objective, Encoder(), rows)
    inf = -np.inf
    assert scored.scores.tolist() == [[0, 10, 20], [0, 10, inf], [0, 10, 20], [0, 10, inf]]
    assert scored.targets.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert scored.types.tolist() == ["choice", "choice", "choice", "noul"]
    assert model.training and model.evaluated == 1, "a model in training is in training again"
    # of like length together, and no more than fit: 5 and 34 and 905 tokens, then 1,205
    assert objective.batches == [[3, 32, 903], [1203]] and BATCH_TOKENS == 2048


def test_as_many_tokens_as_fit_go_through_the_model_together():
    half = BATCH_TOKENS // 2
    assert list(_batches([half, half])) == [[0, 1]] and list(_batches([half, half + 1])) == [[0], [1]]
    assert list(_batches([9, BATCH_TOKENS + 1, 5, half])) == [[2, 0, 3], [1]]


def test_decisions_are_packed_with_the_label_as_the_only_target():
    encoded = [Encoder().encode(row("xx"), (0, 1, 2)), Encoder().encode(row("y", PAIR), (1, 0))]
    batch = packed(encoded)
    assert batch.inputs.tolist() == [100, 101, 102, 7, 7, 101, 100, 7] and batch.cu_seqlens.tolist() == [0, 5, 8]
    assert batch.targets.tolist() == [-1, -1, -1, -1, 5, -1, -1, 5]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.shares.tolist() == [[1, 0, 0], [0, 1, -1]]


def test_another_order_changes_nothing_for_a_model_that_reads_options():
    rows = [row(f"state {n}") for n in range(12)]
    progress = []
    reads = order_changes(Model(), Told(lambda option, place: option), Encoder(), rows, lambda *p: progress.append(p))
    assert reads.value == 0 and reads.high < 0.4 and progress[-1] == (12, 12) and progress[0] == (1, 12)
    first = order_changes(Model(), Told(lambda option, place: -place), Encoder(), rows)
    # the first label wins whatever it stands for: two of three other orders put another option there
    assert first.low < 2 / 3 < first.high and ORDERS == 3
    assert order_changes(Model(), Told(lambda option, place: 0), Encoder(), [row("x", NOUL)]) is None


def test_each_type_has_its_temperature():
    random = np.random.default_rng(0)
    scores = random.normal(0, 2, (400, 2))
    targets = np.eye(2)[(probabilities(scores)[:, 1] > random.random(400)).astype(int)]
    types = np.array(["choice", "noul"] * 200)
    scored = Scored(scores * np.where(types == "noul", 3.0, 1.0)[:, None], targets, types)
    heat = scored.temperatures()
    assert heat == {kind: fit_temperature(scored.scores[types == kind], targets[types == kind]) for kind in heat}
    assert heat["noul"] > 2 * heat["choice"]
    shares = scored.probabilities(heat)
    assert np.allclose(shares[types == "noul"], probabilities(scored.scores[types == "noul"], heat["noul"]))
    alone = scored.probabilities({"noul": 2.0})
    assert np.allclose(alone[types == "choice"], probabilities(scores[types == "choice"]))
    assert np.allclose(alone[types == "noul"], probabilities(scored.scores[types == "noul"] / 2))


def test_a_temperature_is_sought_around_that_of_the_training():
    """So that what is expected beforehand is meant of the scores as they were trained, and few rows do not undo it."""
    random = np.random.default_rng(1)
    scores, targets = random.normal(0, 0.3, (6, 3)), np.eye(3)[random.integers(0, 3, 6)]
    types = np.array(["choice"] * 6)
    (heat,) = Scored(scores, targets, types, heat=0.2).temperatures().values()
    assert heat == pytest.approx(0.2 * fit_temperature(scores / 0.2, targets))
    assert heat != pytest.approx(fit_temperature(scores, targets), rel=0.05)


def test_the_calibration_error_has_the_ends_of_the_basic_bootstrap():
    """Twice as sure as right: the error is far from what chance gives, and its interval lies on both sides of it."""
    confidence = np.linspace(0.8, 0.99, 300)
    right = np.arange(300) % 2 == 0
    found = measure_calibration(confidence, right)
    error = found.error
    assert error.value == pytest.approx(0.395, abs=0.02) and found.if_calibrated < 0.06
    assert error.low < error.value < error.high and error.high - error.low == pytest.approx(4 * 0.029, rel=0.25)
    assert error.low == pytest.approx(2 * error.value - error.high)
    few = measure_calibration(confidence[::9], right[::9])
    assert few.error.high - few.error.low > 2 * (error.high - error.low)
    assert measure_calibration(confidence, right, seed=1).error.high != error.high


def test_families_count_in_what_is_wrong_above_a_risk():
    confidence, right = np.full(40, 0.97), np.array([True] * 30 + [False] * 10)
    (apart,) = risk_coverage(confidence, right, risks=(0.05,))
    (together,) = risk_coverage(confidence, right, [n // 10 for n in range(40)], risks=(0.05,))
    assert apart.wrong.value == together.wrong.value == 0.25 and together.wrong.high > apart.wrong.high
    assert apart.coverage == 1.0


QUEUE = Question.from_json({"type": "choice", "instructions": "Which?", "criteria": ["bills", "parcels", "other"]})
TURNED = Question.from_json({"type": "choice", "instructions": "Which?", "criteria": ["parcels", "bills"]})


def text_row(state: str, best: int, question: Question = QUEUE, name: str = "queue") -> DecisionRow:
    return DecisionRow(state, name, question, tuple(float(i == best) for i in range(len(question.options))), "t:1")


def test_its_shares_are_those_that_are_counted_by_hand():
    train = [text_row("card charged", 0), text_row("card twice", 0), text_row("parcel lost", 1)]
    (shares,) = naive_bayes(train, [text_row("Card, unheard-of!", 0)], 3)
    # prior and one known word of six: (2+1)·(2+1)/(4+5), (1+1)·(0+1)/(2+5), (0+1)·1/(0+5)
    counted = np.array([3 * 3 / 9, 2 / 7, 1 / 5])
    assert shares == pytest.approx(counted / counted.sum())


def test_options_are_known_by_their_keys_and_questions_by_their_names():
    train = [text_row("card charged", 0), text_row("parcel lost", 1), text_row("card charged", 1, name="other")]
    asked = [text_row("card", 1, TURNED), text_row("parcel", 0, TURNED), text_row("card", 1, name="other")]
    shares = naive_bayes(train, asked, 3)
    assert shares.argmax(1).tolist() == [1, 0, 1] and shares[:2, 2].tolist() == [0, 0]
    assert shares.sum(1) == pytest.approx([1, 1, 1])
