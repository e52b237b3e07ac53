"""A teacher's own answers to a person's questions, as rows to learn from."""

import json
from collections.abc import Iterable
from pathlib import Path

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.data.layouts import Example
from settle.evaluate.compare.candidate import CONTEXT, FileModel
from settle.evaluate.compare.cases import cases
from settle.library.reference import ModelRef


def answer_all(model: ModelRef, examples: Iterable[Example], path: Path, max_tokens: int, events: Events) -> int:
    """Writes each question with the model's likeliest answer to `path`, as jsonl; how many it answered.

    max_tokens: of an answer. A question that it says nothing to, or that does not fit into memory's context, is left
    out. Raises DataError when none is left, and what `Engine` raises.
    """
    questions = cases(examples)
    lines = []
    with FileModel.open(model.weights, model.name, model.adapter, CONTEXT) as teacher:

        def on_progress(done: int) -> None:
            events.emit(Progress(what="the teacher answers", done=done, total=len(questions), unit="questions"))

        for case, answer in zip(questions, teacher.answers(questions, max_tokens, on_progress), strict=True):
            if not answer.text.strip():
                continue
            if teacher.chats:
                message = {"role": "assistant", "content": answer.text}
                row = {"messages": [*case.messages, message], **({"tools": list(case.tools)} if case.tools else {})}
            else:
                row = {"prompt": case.prompt, "completion": answer.text}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError(
            f"{model.name} answers none of the {len(questions)} questions", "learn the answers that are given"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.rename(path)
    return len(lines)
