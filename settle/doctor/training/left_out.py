"""Answers in a run's rows that were no targets: by a setting that takes the last alone, or by marks in the rows."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from settle.base.chat_template import ChatTemplate
from settle.base.errors import UsageError
from settle.base.files import write_atomic
from settle.data.layouts import Broken, Example
from settle.data.rows.prepare import prepared_rows
from settle.data.rows.render import Rendered, Renderer
from settle.data.rows.supervision import Supervision
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.doctor.training.facts import Recipe, TrainingFacts, TunedFacts
from settle.doctor.training.rows import LONGEST
from settle.doctor.trial import Item
from settle.formats.gguf import read_gguf
from settle.wire.exchange import fields_of
from settle.wire.types import JsonObject

ROWS = 64  # that are read
LEAST_SHARE = 0.5  # of the text of all answers, that has to be left out for it to matter


class LeftOut(NamedTuple):
    """Answers that were no targets."""

    items: list[Item]  # each a conversation up to the end of such an answer
    share: float  # of the text of all answers
    marked: bool  # whether the rows themselves leave some of them out


def left_out(facts: TunedFacts) -> LeftOut | None:
    """Return the answers that a run was not to learn; None where these are few, or its rows are no conversations."""
    corpus = prepared_rows(facts.corpus)
    supervise = str(fields_of(facts.recipe.get("rows")).get("supervise") or "assistant")
    if corpus is None or corpus.kind != "chat" or supervise == "all":
        return None
    tokenizer = PretrainedTokenizer(read_gguf(facts.base).metadata)
    supervision = Supervision(tokenizer)
    bos, eos = (tokenizer.tokens[i] if i is not None else "" for i in (tokenizer.bos_id, tokenizer.eos_id))
    template = ChatTemplate(corpus.template, bos, eos) if corpus.template else None
    renderer = Renderer(template, supervision.stops, supervision.controls, supervise, {})
    items: list[Item] = []
    out = whole = 0
    marked = False
    for example in itertools.islice(corpus.examples("train"), ROWS):
        marked |= any("weight" in message for message in example.messages)
        for row in _rendered(renderer, example):
            for answer in row.answers:
                size = answer.end - answer.start
                whole += size
                if not answer.supervised:
                    out += size
                    items += _item(supervision, row, answer.start, answer.end)
    share = out / whole if whole else 0.0
    return LeftOut(items, share, marked) if share >= LEAST_SHARE else None


def with_all_answers(facts: TrainingFacts, folder: Path, marked: bool) -> Recipe:
    """Return a recipe by which the run learns every answer; rows that leave some out are written anew to `folder`."""
    recipe = {**facts.recipe, "rows": {**fields_of(facts.recipe.get("rows")), "supervise": "assistant"}}
    if marked:
        path = folder / "rows-unmarked.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in _unmarked(facts)))
        recipe["inputs"] = [str(path)]
    return recipe


def _rendered(renderer: Renderer, example: Example) -> list[Rendered]:
    try:
        return renderer.rows(example)
    except Broken:
        return []


def _item(supervision: Supervision, row: Rendered, start: int, end: int) -> Iterator[Item]:
    """Yield a row up to the end of one of its answers, whose tokens count; of a long one the end."""
    text = row.text[:end]
    whole, before = (supervision.ids(part) for part in (text, text[:start]))
    cut = max(0, len(whole) - LONGEST)
    if cut < len(before) < len(whole):
        yield {"ids": whole[cut:], "first": len(before) - cut}


def _unmarked(facts: TrainingFacts) -> Iterator[JsonObject]:
    """Yield all rows of a run, without marks of what is not to be learned. Raises UsageError if they are gone."""
    corpus = prepared_rows(facts.corpus)
    if corpus is None:
        raise UsageError(f"the rows of {facts.run.name} were deleted since the look", "run it again")
    for side in ("train", "selection", "held_out"):
        for example in corpus.examples(side):
            messages = [{key: value for key, value in m.items() if key != "weight"} for m in example.messages]
            yield {"messages": messages, **({"tools": example.tools} if example.tools else {})}
