"""A teacher's own answers to a person's questions, as rows to learn from."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress, Say
from settle.data.layouts import Example
from settle.evaluate.compare.candidate import CONTEXT, Answer, FileModel
from settle.evaluate.compare.cases import cases
from settle.evaluate.compare.in_time import FIRST, spread_order
from settle.library.reference import ModelRef


def answer_all(
    model: ModelRef,
    examples: Iterable[Example],
    path: Path,
    max_tokens: int,
    events: Events,
    seconds: float | None = None,
) -> Path:
    """Writes each question with the model's likeliest answer to `path`, as jsonl, and returns it.

    max_tokens: of an answer. A question that it says nothing to, or that does not fit into memory's context, is left
    out. seconds: what that may take. When it is too little, an evenly spread part of the questions is answered, and the
    file that is returned has their number in its name. Raises DataError when none is left, and what `Engine` raises.
    """
    questions = cases(examples)
    lines = []
    began = time.monotonic()
    with FileModel.open(model.weights, model.name, model.adapter, CONTEXT) as teacher:
        answers: dict[int, Answer] = {}

        def on_progress(done: int) -> None:
            done += len(answers)
            events.emit(Progress(what="the teacher answers", done=done, total=len(questions), unit="questions"))

        order = spread_order(len(questions)) if seconds is not None else list(range(len(questions)))
        group = FIRST if seconds is not None else max(1, len(order))
        while len(answers) < len(order):
            spent, before = time.monotonic() - began, len(answers)
            if seconds is not None and before and spent * (1 + group / before) > seconds:
                break
            chosen = order[before : before + group]
            asked = [questions[i] for i in chosen]
            found = teacher.answers(asked, max_tokens, on_progress)
            answers |= dict(zip(chosen, found, strict=True))
        if len(answers) < len(questions):
            text = f"the time had room for the teacher's answers to {len(answers)} of {len(questions)} questions"
            events.emit(Say(text=text))
            path = path.with_stem(f"{path.stem}-{len(answers)}")
        for case, answer in ((questions[i], answers[i]) for i in sorted(answers)):
            if not answer.text.strip():
                continue
            if teacher.chats:
                message = {"role": "assistant", "content": answer.text}
                row = {"messages": [*case.messages, message], **({"tools": list(case.tools)} if case.tools else {})}
            else:
                row = {"prompt": case.prompt, "completion": answer.text}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError(f"{model.name} answers none of {len(answers)} questions", "learn the answers that are given")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.rename(path)
    return path
