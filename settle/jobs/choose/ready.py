"""A finished choice, put to use: questions are answered exactly in the way that was measured."""

from collections.abc import Mapping
from pathlib import Path

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, ResultReady
from settle.base.files import read_json
from settle.evaluate.compare.cases import asking
from settle.jobs.choose import choice_folder
from settle.jobs.choose.documents import PASSAGES
from settle.jobs.choose.setup import AnsweringModel, ModelInTurns, Setup, answers
from settle.jobs.choose.ways.decide_way import DecisionModel
from settle.library.reference import ModelRef
from settle.model.source import Source
from settle.retrieve.answer.retrieval import retrieve
from settle.retrieve.index.collection import Collection


def answer(name: str, question: str, threads: int | None, events: Events) -> int:
    """Answers one question as the way that a choice took; the exit code. Raises UsageError for an unknown choice."""
    folder = choice_folder.choices() / name
    if not (folder / choice_folder.RESULT).is_file():
        known = (
            ", ".join(p.parent.name for p in sorted(choice_folder.choices().glob(f"*/{choice_folder.RESULT}")))
            or "none yet"
        )
        raise UsageError(f"there is no finished choice {name!r}; there are: {known}", "settle choose FILE --model NAME")
    if not question.strip():
        raise UsageError("there is nothing to answer", f'settle choose {name} --ask "a question"')
    way = str(read_json(folder / choice_folder.RESULT)["chosen"])
    record = choice_folder.kept_way(folder, way)
    setup, tokens = Setup.from_json(record), record["max_tokens"]
    assert isinstance(tokens, int)
    passages: tuple[str, ...] = ()
    if record["collection"]:
        with Collection(str(record["collection"])) as collection:
            hits = retrieve(collection, question, k=PASSAGES).hits
            passages = tuple(hit.passage.embedded for hit in hits)
    model = _model(record, tokens, threads)
    try:
        reply = answers(setup.over(model, way, {0: passages}), [asking(question)])[0]
    finally:
        model.close()
    events.emit(AnswerText(text=f"{reply.text}\n"))
    events.emit(
        ResultReady(result={"question": question, "answer": reply.text, "way": way, "passages": list(passages)})
    )
    return 0 if reply.text else 3


def _model(record: Mapping[str, object], tokens: int, threads: int | None) -> AnsweringModel:
    labels = record["labels"]
    if isinstance(labels, list) and labels:
        return DecisionModel(_ref(record), labels, threads)
    return ModelInTurns(_ref(record), tokens, threads)


def _ref(record: Mapping[str, object]) -> ModelRef:
    """The model of a way. Raises UsageError where its file is gone."""
    paths = [Path(str(record[key])) for key in ("weights", "adapter") if record[key]]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path} is gone", "run the same `settle choose` again")
    name = str(record["model"])
    base = ModelRef(name, "model", Source(paths[0], "gguf", name))
    if len(paths) == 1:
        return base
    return ModelRef(name, "adapter", Source(paths[1], "gguf", name), base=base)
