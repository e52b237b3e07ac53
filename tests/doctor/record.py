"""Asks a model and records it as a client would: a transcript for tests, the bench and replays."""

import json
from collections.abc import Sequence
from pathlib import Path

from settle.base.files import write_atomic
from settle.doctor.answerer import Answerer
from settle.doctor.read_transcript import read_transcript
from settle.doctor.subject import ChatRecord, RecordedChat
from settle.wire.exchange import Change, Request
from settle.wire.formats.openai import OpenAIFormat


def record(answerer: Answerer, requests: Sequence[Request], path: Path, as_asked: Change = lambda r: r) -> RecordedChat:
    """Record what `answerer` answers to `requests`, one record a line, and return the transcript as a subject.

    as_asked: what a server makes of a request before its model sees it. Raises SettleError.
    """
    openai = OpenAIFormat()
    answerer.open()
    try:
        records = [
            {"request": openai.body(r), "response": openai.reply_body(answerer.ask(as_asked(r)))} for r in requests
        ]
    finally:
        answerer.close()
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in records))
    return RecordedChat(str(path), ChatRecord(read_transcript(path), answerer))
