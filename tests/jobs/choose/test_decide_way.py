"""The way of decisions: rows to tune on, and a decision model that is really asked."""

import json

from settle.evaluate.compare.cases import asking, cases
from settle.jobs.choose.answerer import DECIDE, NAME, DecisionModel, Setup, answers, question, write_decisions
from settle.library.resolve import resolve_gguf
from tests import decision_model
from tests.jobs.choose.test_examples import row

LABELS = ["tables", "errors", "names"]  # another set than that of its training, so they keep their order


def test_a_decision_model_answers_with_a_label_and_its_probability(home, tmp_path):
    model = DecisionModel(resolve_gguf(decision_model.write(tmp_path / "decider.gguf")), LABELS, 1)
    state = "raise ValueError('x'), y"
    try:
        (reply,) = answers(Setup().over(model, DECIDE), [asking(state)])
    finally:
        model.close()
    expected = dict(zip(sorted(LABELS), decision_model.probabilities(state, question(LABELS)), strict=True))
    assert reply.text == max(expected, key=expected.__getitem__)
    assert all(abs(reply.probabilities[label] - share) < 0.01 for label, share in expected.items())
    assert reply.seconds > 0 and model.process_peak > 1e6


def test_rows_of_decisions_have_all_labels_as_options(tmp_path):
    rows = [row("my card was charged twice", "billing "), row("where is it", "shipping"), row("when is it", "noon")]
    write_decisions(tmp_path / "rows.jsonl", cases(rows), ["shipping", "billing"])
    first, _ = (json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines())  # noon is no label
    assert first["state"] == "my card was charged twice" and first["targets"] == {NAME: "billing"}
    assert list(first["questions"][NAME]["criteria"]) == ["billing", "shipping"]
