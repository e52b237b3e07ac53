"""How far llama.cpp's probabilities are from a model's own: any model as a decision model, through the gate.

    python bench/decision_gate.py MODEL ROWS.csv [--rows 12] [--odd 20]

MODEL: a GGUF file or a name of the store. ROWS: a table with a label column; besides what it decides, each row is asked
a noul and a score. Temperatures are made up: they sharpen the differences.
"""

import argparse
import csv
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from settle.data.decisions.corpus import prompt_for
from settle.data.decisions.prompt import DECISION_TYPE, DecisionEncoder, all_labels
from settle.data.decisions.questions import Question
from settle.data.decisions.rows import decision_rows
from settle.evaluate.gate import decision_gate
from settle.formats.gguf import export_gguf
from settle.formats.gguf.decision import DecisionKeys
from settle.library.pretrained import open_pretrained
from settle.train.objectives.decision import Decision

TEMPERATURES = {"choice": 0.7, "noul": 0.5, "score": 1.4}
OTHERS = {
    "noun": {"type": "noul", "instructions": "Is it a noun?"},
    "rare": {"type": "score", "instructions": "How rare is it?", "criteria": ["common", "known", "rare"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("table", type=Path)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--odd", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    opened = open_pretrained(asked.model)
    tokenizer, labels, prompt = opened.tokenizer, all_labels(opened.tokenizer), prompt_for(opened.tokenizer)
    with asked.table.open(encoding="utf-8", newline="") as file:
        records = [(f"{asked.table.name}:{i}", row) for i, row in enumerate(csv.DictReader(file))]
    rows = decision_rows(records)[: asked.rows]
    for name, spelled in OTHERS.items():
        question = Question.from_json(spelled)
        target = tuple(float(i == 0) for i in range(len(question.options)))
        rows += [replace(row, question=question, name=name, target=target) for row in rows[: asked.rows // 2]]
    questions = {row.name: row.question.to_json() for row in rows}
    keys = DecisionKeys(DECISION_TYPE, prompt.template, TEMPERATURES, questions, ("text",), (0.5,), (True,))
    decision_gate.ADVERSARIAL = decision_gate.ADVERSARIAL[: asked.odd]
    with tempfile.TemporaryDirectory() as folder:
        path, held = Path(folder) / "decision.gguf", keys.metadata(opened.part.gguf_architecture)
        export_gguf(opened.part, opened.weights, tokenizer, path, "f16", {"name": "decision"}, held)
        objective = Decision(labels=list(labels.values()))
        encoder = DecisionEncoder(tokenizer, prompt, labels)
        start = time.perf_counter()
        gate = decision_gate.DecisionGate(opened.load().eval(), objective, encoder, keys, rows)
        figures = gate.run(path) | {"labels": len(labels), "seconds": round(time.perf_counter() - start)}
    print(json.dumps({"model": asked.model} | figures))


if __name__ == "__main__":
    main()
