"""The model calls tools that there are not, or with arguments that they do not have, or where none is needed."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, cast

from settle.doctor.answerer import Answerer
from settle.doctor.asked_again import AskedAgain, AskingSide, AtExchange, request_fix
from settle.doctor.findings import Finding, Fix
from settle.doctor.known_answers import KNOWN_ANSWERS
from settle.doctor.subject import AskedModel
from settle.doctor.trial import FEWEST_ITEMS, Trial
from settle.infer.tool_calls import calls_in
from settle.wire.exchange import Fields, Reply, Request, Tool, fields_of, objects_in

ITEMS = 10
LEAST_SHARE = 0.5
TOKENS = 192  # of a call
SHORTEST_WORD = 4  # letters of a word that says what a question or a tool is about
_WORD = re.compile(r"[a-z]+")
ASIDE = [known.question for known in KNOWN_ANSWERS[:20]]  # questions that no tool is needed for
ANSWER = {  # what an answer in words looks like beside calls
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}
CITIES = (
    *("Paris", "Berlin", "Rome", "Madrid", "Lisbon", "Vienna", "Prague", "Oslo", "Dublin", "Athens", "Warsaw"),
    *("Helsinki", "Budapest", "Brussels", "Zurich", "Riga", "Tallinn", "Sofia", "Belgrade", "Zagreb"),
)


class WrongCall(AtExchange):
    """An exchange with a wrong call. needless: nothing but that no tool was needed."""

    needless: bool = False


class InventedCall(AskedAgain[WrongCall]):
    """A grammar of the tools' own names and arguments leaves a model nothing to invent.

    One that allows nothing but calls, or a client that demands one, makes it call a tool for a greeting too.
    """

    number: ClassVar[int] = 17
    symptom: ClassVar[str] = (
        "it calls tools that do not exist, or with arguments that they do not have, or where none is needed"
    )
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: AskedModel) -> Iterator[Finding[WrongCall]]:
        wrong = [
            (at, fault)
            for at, exchange, reply in subject.chat.answered
            if exchange.request.tools and (fault := _fault(exchange.request.tools, reply))
        ]
        if wrong:
            yield self.finding(
                "the model calls what is not there",
                *(f"exchange {at + 1}: {fault}" for at, fault in wrong[:3]),
                strength=0.95,
                details=WrongCall(exchange=wrong[0][0]),
            )
            return
        needless = [
            (at, exchange.request)
            for at, exchange, reply in subject.chat.answered
            if _calls(reply) and _is_forced(exchange.request) and not _is_about(exchange.request)
        ]
        if needless:
            yield self.finding(
                "the client makes the model call a tool, where none is needed",
                *(f"exchange {at + 1}: it is asked {r.question[:60]!r}" for at, r in needless[:3]),
                strength=0.8,
                details=WrongCall(exchange=needless[0][0], needless=True),
            )

    def asked_again(self, finding: Finding[WrongCall], subject: AskedModel, answerer: Answerer) -> Trial:
        request, is_needless = finding.details.request(subject), finding.details.needless
        tools = request.tools
        base = (_in_prompt(request) if "response_format" in request.settings else request).having(
            max_tokens=TOKENS, temperature=0, seed=0
        )
        setting, value = _change(request, is_needless)
        changed = _in_prompt(base) if setting == "response_format" and base.tools else base
        changed = changed.having(**{setting: value})

        def valid(_: Request, reply: Reply) -> float:
            return float(bool(_calls(reply)) and not _fault(tools, reply))

        def calls(_: Request, reply: Reply) -> float:
            return float(bool(_calls(reply)))

        purposes = [str(_function(tool).get("description") or _function(tool)["name"]) for tool in tools]
        about = [f"{purposes[at % len(tools)]} {city}" for at, city in enumerate(CITIES)]
        items, guards, score, guarded = about, ASIDE, valid, calls
        if is_needless:
            items, guards = ASIDE, about
            score, guarded = lambda *asked: 1 - calls(*asked), lambda *asked: 1 - valid(*asked)
        only = "" if _is_forced(request) and not is_needless else ", or of an answer in words"
        grammar = f"a grammar of the tools' names and arguments{only}"
        return Trial(
            knob=grammar if setting == "response_format" else "tool_choice = auto",
            before=AskingSide("as it is", answerer, base, score, guarded=guarded),
            after=AskingSide("changed", answerer, changed, score, guarded=guarded),
            measure="answers in words where no tool is needed" if is_needless else "answers that call a tool as it is",
            unit="of one",
            items=items[:ITEMS],
            others=items[ITEMS : 2 * ITEMS],
            least=LEAST_SHARE,
            lower=False,
            guards=guards[:FEWEST_ITEMS],
            seconds=3.0,
        )

    def fix(self, finding: Finding[WrongCall], subject: AskedModel) -> Fix:
        request = finding.details.request(subject)
        return request_fix(request, *_change(request, finding.details.needless))


def strict_format(tools: Sequence[Tool], *others: Fields) -> Fields:
    """Return OpenAI's response_format for a call of one of `tools`, or for one of `others`."""
    calls: list[Fields] = [
        {
            "type": "object",
            "properties": {"name": {"const": _function(tool)["name"]}, "arguments": _function(tool)["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return {"type": "json_schema", "json_schema": {"name": "call", "schema": {"anyOf": [*calls, *others]}}}


def _change(request: Request, is_needless: bool) -> tuple[str, object]:
    """Return the setting to change, and its value: where the choice of a call is left to the model, it stays so."""
    if is_needless and "response_format" not in request.settings:
        return "tool_choice", "auto"
    others = () if _is_forced(request) and not is_needless else (ANSWER,)
    return "response_format", strict_format(request.tools, *others)


def _is_forced(request: Request) -> bool:
    """Return whether what is asked for can be nothing but a call."""
    if "response_format" in request.settings:
        return all("name" in each and "arguments" in each for each in _formats(request.settings["response_format"]))
    return request.settings.get("tool_choice") not in (None, "auto", "none")


def _formats(value: object) -> list[Fields]:
    """Return the properties of each alternative that a response_format has."""
    schema = fields_of(fields_of(fields_of(value).get("json_schema")).get("schema"))
    return [fields_of(one.get("properties")) for one in objects_in(schema.get("anyOf") or [schema])]


def _is_about(request: Request) -> bool:
    """Return whether a question shares a word with what its tools say of themselves."""
    asked = _words(request.question)
    return any(asked & _words(json.dumps(_function(tool))) for tool in request.tools)


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.lower()) if len(word) >= SHORTEST_WORD}


def _function(tool: Tool) -> Fields:
    return cast(Fields, tool["function"])  # a request without one is of no known layout


def _in_prompt(request: Request) -> Request:
    """Return the request with its tools as text in the system prompt, as servers do without a grammar beside tools."""
    tools = "\n".join(json.dumps(_function(tool)) for tool in request.tools)
    text = f'{request.instructions}\nAnswer with a call of a tool: {{"name": …, "arguments": …}}. Tools:\n{tools}'
    return replace(request, messages=({"role": "system", "content": text.strip()}, *request.turns), tools=())


def _calls(reply: Reply) -> list[tuple[str, object]]:
    """Return names and arguments of calls, also of those in the text."""
    return [(call.name, call.values) for call in reply.calls] or calls_in(reply.answer)


def _fault(tools: Sequence[Tool], reply: Reply) -> str:
    """Return what is wrong with the calls of an answer, or nothing."""
    known = {str(_function(tool)["name"]): fields_of(_function(tool)["parameters"]) for tool in tools}
    for name, arguments in _calls(reply):
        if name not in known:
            return f"it calls {name[:60]!r}, and there are {', '.join(known)[:120]}"
        if not isinstance(arguments, Mapping):
            return f"the arguments of {name} are no JSON object"
        has, required = fields_of(known[name].get("properties")), known[name].get("required")
        unknown = [key for key in arguments if has and key not in has]
        missing = [key for key in required if key not in arguments] if isinstance(required, list) else []
        if unknown or missing:
            what = f"has no {unknown[0]!r}" if unknown else f"needs {missing[0]!r}"
            return f"it calls {name}, which {what}"
    return ""
