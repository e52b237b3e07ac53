"""Questions and answers as llama.cpp's `/v1/systemone` has them (its tools/server/server-decision.cpp, October 2026).

llama.cpp reads special tokens wherever they are in a rendered prompt, so what a state, a question or an option spells
of them is parted here, as it was in training. Questions go under names of our own, in their order.
"""

from collections.abc import Mapping, Sequence

from settle.base.errors import DataError
from settle.data.decisions.answers import Answer
from settle.data.decisions.prompt import DecisionPrompt, state_text
from settle.data.decisions.questions import Question

PATH = "/v1/systemone"


def fence(controls: Sequence[str]) -> DecisionPrompt:
    """What parts the tokens of a model that stand for no text, wherever a text spells one."""
    return DecisionPrompt("", "", tuple(controls))


def request(state: object, questions: Sequence[Question], prompt: DecisionPrompt) -> dict[str, object]:
    """The body for llama.cpp. state: text, or JSON. Raises DataError for options that llama.cpp cannot tell apart."""
    body = {str(i): _question(question, prompt) for i, question in enumerate(questions)}
    return {"state": prompt.plain(state_text(state)), "questions": body}


def answers(reply: Mapping[str, object], questions: Sequence[Question], prompt: DecisionPrompt) -> list[Answer]:
    """What llama.cpp answered, in the order of the questions. Raises DataError for a reply of another form."""
    given = reply.get("answers")
    try:
        assert isinstance(given, Mapping)
        return [Answer(q, _probabilities(given[str(i)], q, prompt)) for i, q in enumerate(questions)]
    except (KeyError, TypeError, ValueError, AssertionError):
        raise DataError("llama.cpp answered in another form than is known here", "update settle") from None


def _question(question: Question, prompt: DecisionPrompt) -> dict[str, object]:
    body = question.to_json()
    body["instructions"] = prompt.plain(question.instructions)
    described = {prompt.plain(o.key): prompt.plain(o.description or "") or None for o in question.options}
    if len(described) < len(question.options):
        raise DataError("two options differ only in how they spell special tokens", "rename one of them")
    if question.type == "score":
        body["criteria"] = [text or "" for text in described.values()]
    elif "criteria" in body:
        body["criteria"] = described
    return body


def _probabilities(answer: Mapping[str, object], question: Question, prompt: DecisionPrompt) -> tuple[float, ...]:
    if question.type == "noul":
        true = answer["noul"]
        assert isinstance(true, float | int)
        return (1.0 - true, float(true))
    by_key = answer["probabilities"]
    assert isinstance(by_key, Mapping)
    return tuple(float(by_key[prompt.plain(option.key)]) for option in question.options)
