"""Text that a model knew before it was tuned, as ids of its base: what a tuned model should not have lost."""

from settle.doctor.known_answers import KNOWN_ANSWERS, PROSE
from settle.doctor.training.facts import TrainingFacts
from settle.doctor.trial import Item
from settle.infer.engine import Engine

CONTEXT = 512  # tokens


def general_texts(facts: TrainingFacts) -> list[Item]:
    """Known answers and prose in turns, each the ids that its base makes of it. Raises SettleError."""
    assert facts.base is not None
    items: list[Item] = []
    with Engine(facts.base, CONTEXT) as engine:
        for known, prose in zip(KNOWN_ANSWERS, PROSE, strict=False):
            if engine.takes_turns:
                prompt = engine.turns([{"role": "user", "content": known.question}])
            else:
                prompt = engine.plain(f"Question: {known.question}\nAnswer: ")
            items.append({"ids": [*prompt, *engine.tokenize(known.answer)], "first": max(1, len(prompt))})
            items.append({"ids": list(engine.tokenize(prose, opening=True)), "first": 2})
    return items
