"""Whether a model reads the passages that it is given: facts that no text ever stated, put into passages of a
collection, and how likely the model then finds what they say."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from settle.doctor.demonstration.made_up_facts import Fact, made_up_fact
from settle.doctor.likelihood import LikelihoodSide, Reading
from settle.doctor.trial import Item
from settle.infer.engine import Engine
from settle.library.reference import ModelRef
from settle.retrieve.answer.write_answer import AnswerOptions, Prompt
from settle.retrieve.index.collection import Collection
from settle.retrieve.search.hybrid_search import search

CONTEXT = 2048  # tokens: passages take 1,536 at most


class FactSide(LikelihoodSide):
    """The nats per token of a made-up fact that is in the last of the first `deep` passages, and so the furthest from
    the question. k: passages that the prompt has, that one among them."""

    def __init__(self, name: str, model: ModelRef, collection_name: str, deep: int, k: int) -> None:
        super().__init__(name, model, context=CONTEXT)
        self._collection_name, self._deep, self.k = collection_name, deep, k
        self._collection: Collection | None = None
        self.dropped = 0  # passages that found no room in the latest prompt

    def open(self) -> None:
        super().open()
        self._collection = Collection(self._collection_name)

    def close(self) -> None:
        collection, self._collection = self._collection, None
        if collection is not None:
            collection.close()
        super().close()

    def mean(self, items: Sequence[Item], k: int) -> float:
        """The mean of some items with that many passages."""
        self.k = k
        return sum(map(self.measure, items)) / len(items)

    def measure(self, item: Item) -> float:
        assert self.reader is not None
        return self.reader.nats_of_end(self.reading(self.reader.engine, item))

    def reading(self, engine: Engine, item: Item) -> Reading:
        assert isinstance(item, Mapping) and self._collection is not None
        fact = Fact(*(str(item[name]) for name in Fact._fields))
        hits = search(self._collection, str(item["beside"]), self._deep)
        last = hits[-1]
        passage = last.passage._replace(text=f"{last.passage.text}\n{fact.sentence}")
        hits = [*hits[:-1][: self.k - 1], replace(last, passage=passage)]
        prompt = Prompt(self._collection, engine, fact.question, hits, AnswerOptions())
        self.dropped = len(prompt.packed.dropped)
        begun = [*prompt.ids, *engine.tokenize(fact.begun)]
        return Reading([*begun, *engine.tokenize(fact.answer)], len(begun))


def fact_items(questions: Sequence[str], seed: int) -> list[Item]:
    """A made-up fact for each question; the passages are those that the question finds."""
    draws = random.Random(seed)
    return [{**made_up_fact(draws)._asdict(), "beside": question} for question in questions]
