"""The form that all wanted answers have, where they have one: a grammar forces it, so nothing has to teach it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from settle.base.files import parse_json

_NUMBER = (re.compile(r"-?\d+(\.\d+)?"), "a number", 'root ::= "-"? [0-9]+ ("." [0-9]+)?')
_DATE = (
    re.compile(r"\d{4}-\d\d-\d\d"),
    "a date",
    'root ::= [0-9] [0-9] [0-9] [0-9] "-" [0-9] [0-9] "-" [0-9] [0-9]',
)
_VALUE = r"""
value ::= string | number | "true" | "false" | "null"
number ::= "-"? [0-9]+ ("." [0-9]+)?
string ::= "\"" ([^"\\\x00-\x1F] | "\\" ["\\/bfnrtu])* "\""
"""


@dataclass(frozen=True)
class AnswerForm:
    """title: for people. grammar: of a whole answer, in GBNF."""

    title: str
    grammar: str


def form_of(answers: Sequence[str], labels: Sequence[str]) -> AnswerForm | None:
    """The form of all these answers. labels: they are a closed set of these, if any are given."""
    if labels:
        return AnswerForm("one of the known answers", only(labels))
    texts = [answer.strip() for answer in answers]
    for pattern, title, grammar in (_NUMBER, _DATE):
        if texts and all(pattern.fullmatch(text) for text in texts):
            return AnswerForm(title, grammar)
    keys = {_keys(text) for text in texts}
    (same,) = keys if len(keys) == 1 else ((),)
    if not same:
        return None
    pairs = ' "," " "? '.join(f'{_quoted(json.dumps(key) + ":")} " "? value' for key in same)
    return AnswerForm(f"JSON with {', '.join(same)}", f'root ::= "{{" {pairs} "}}"{_VALUE}')


def only(labels: Sequence[str]) -> str:
    """The grammar of an answer that is one of the labels."""
    return "root ::= " + " | ".join(map(_quoted, labels))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _keys(text: str) -> tuple[str, ...]:
    """The keys of a JSON object without others in it; () for anything else."""
    try:
        value = parse_json(text)
    except ValueError:
        return ()
    is_flat = isinstance(value, dict) and not any(isinstance(v, dict | list) for v in value.values())
    return tuple(value) if is_flat else ()
