"""The tiny trained model as a decision model, and what its probabilities are in torch."""

from pathlib import Path

import torch

from settle.base.chat_template import ChatTemplate
from settle.data.decisions.prompt import DECISION_TYPE, DecisionPrompt, labels_of
from settle.data.decisions.questions import Question
from settle.formats.gguf import export_gguf
from settle.formats.gguf.decision import DecisionKeys
from tests.trained import trained

TEMPERATURES = {"choice": 2.0, "noul": 0.5, "score": 1.5}
# one hundred rows that nothing was fitted on: the surer half is right, of the others four in five
QUESTIONS = {
    "topic": {"type": "choice", "instructions": "Which one?", "criteria": {"lists": None, "errors": None, "names": ""}}
}
CONFIDENCES = tuple(round(0.995 - 0.005 * i, 3) for i in range(100))
CORRECT = tuple(i < 60 or i % 5 > 0 for i in range(100))


def prompt() -> DecisionPrompt:
    tokenizer = trained().tokenizer
    return DecisionPrompt.of(tokenizer, ChatTemplate(tokenizer.chat_template))


def keys(**changes: object) -> DecisionKeys:
    values = {"read_out": DECISION_TYPE, "template": prompt().template, "temperatures": TEMPERATURES}
    values |= {"questions": QUESTIONS, "columns": ("text",), "families": tuple(range(len(CORRECT)))}
    return DecisionKeys(**(values | {"confidences": CONFIDENCES, "correct": CORRECT} | changes))


def write(path: Path, decision: DecisionKeys | None = None, dtype: str = "f32") -> Path:
    model = trained()
    held = (decision or keys()).metadata("llama")
    return export_gguf(model.part, model.weights, model.tokenizer, path, dtype, {"name": path.stem}, held)


def probabilities(state: str, question: Question) -> list[float]:
    """By the model in torch, from the text that the prompt writes, with the temperatures above."""
    model = trained()
    labels = labels_of(model.tokenizer, len(question.options))
    text = prompt().text(state, question, range(len(question.options)), list(labels))
    ids = torch.from_numpy(model.tokenizer.encode(text, specials=True).astype("int64"))
    with torch.no_grad():
        hidden = model.model(ids, torch.tensor([0, len(ids)], dtype=torch.int32))
    logits = (hidden[-1] @ model.model.head.T)[list(labels.values())]
    return torch.softmax(logits.double() / TEMPERATURES[question.type], 0).tolist()
