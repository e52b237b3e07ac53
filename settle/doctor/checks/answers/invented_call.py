"""The model calls tools that there are not, or with arguments that they do not have."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from settle.doctor.answerers.asking_side import AskingSide
from settle.doctor.answerers.local_model import LocalModel
from settle.doctor.checks import Check
from settle.doctor.exchanges.exchange import Reply, Request, Tool
from settle.doctor.exchanges.fix_request import request_fix
from settle.doctor.exchanges.record import record
from settle.doctor.findings import Finding, Fix
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial
from settle.evaluate.tasks.tool_call import calls_in

ITEMS = 7
LEAST_SHARE = 0.5
TOKENS = 192  # of a call
CITIES = (
    *("Paris", "Berlin", "Rome", "Madrid", "Lisbon", "Vienna", "Prague", "Oslo", "Dublin", "Athens", "Warsaw"),
    *("Helsinki", "Budapest", "Brussels"),
)
LOOSE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "arguments": {
            "type": "object",
            "properties": {"unit": {"type": "string", "maxLength": 10}},
            "required": ["unit"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "arguments"],
    "additionalProperties": False,
}


class InventedCall(Check):
    """A grammar of the tools' own names and arguments leaves a model nothing to invent."""

    number: ClassVar[int] = 17
    symptom: ClassVar[str] = "it calls tools that do not exist, or with arguments that they do not have"
    about: ClassVar[tuple[str, ...]] = ("chat",)
    seconds: ClassVar[float] = 0.1

    def detect(self, subject: Subject) -> Iterator[Finding]:
        assert subject.chat is not None
        wrong = [
            (at, fault)
            for at, exchange, reply in subject.chat.answered
            if exchange.request.tools and (fault := _fault(exchange.request.tools, reply))
        ]
        if wrong:
            yield Finding(
                check=self.part_name(),
                what="the model calls what is not there",
                evidence=tuple(f"exchange {at + 1}: {fault}" for at, fault in wrong[:3]),
                strength=0.95,
                details={"exchange": wrong[0][0]},
            )

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial | None:
        assert subject.chat is not None
        answerer, request = subject.chat.answerer, _request(finding, subject)
        if answerer is None:
            return None
        tools = request.tools
        as_it_is = _in_prompt(request) if "response_format" in request.settings else request
        base = replace(as_it_is.having(max_tokens=TOKENS, temperature=0, seed=0))
        strict = replace(_in_prompt(request).having(max_tokens=TOKENS, temperature=0, seed=0))
        strict = strict.having(response_format=strict_format(tools))

        def valid(_: Request, reply: Reply) -> float:
            return float(bool(_calls(reply)) and not _fault(tools, reply))

        items = [f"{_purpose(tools[at % len(tools)])} {city}" for at, city in enumerate(CITIES)]
        return Trial(
            knob="a grammar of the tools' names and arguments",
            before=AskingSide("as it is", answerer, base, lambda r: r, valid),
            after=AskingSide("changed", answerer, strict, lambda r: r, valid),
            measure="answers that call a tool as it is",
            unit="of one",
            items=items[:ITEMS],
            others=items[ITEMS:],
            least=LEAST_SHARE,
            lower=False,
            seconds=3.0,
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        request = _request(finding, subject)
        return request_fix(request, "response_format", strict_format(request.tools))

    def injected(self, healthy: Subject, folder: Path) -> Subject:
        """A client that asks for JSON with a name and arguments, and does not say which there are."""
        assert healthy.model is not None
        unit = {"type": "string", "enum": ["celsius", "fahrenheit"]}
        schema = {"type": "object", "properties": {"unit": unit}, "required": ["unit"], "additionalProperties": False}
        about = {"name": "get_weather", "description": "What is the weather in", "parameters": schema}
        tools = ({"type": "function", "function": about},)
        loose = {"type": "json_schema", "json_schema": {"name": "call", "schema": LOOSE}}
        settings = {"response_format": loose, "max_tokens": TOKENS, "temperature": 0}
        asked = [
            Request(({"role": "user", "content": f"What is the weather in {city}?"},), tools, settings)
            for city in ("London", "Copenhagen")
        ]
        answerer = LocalModel(healthy.model)
        return record(answerer, asked, folder / "chat.jsonl", as_asked=_in_prompt)


def strict_format(tools: Sequence[Tool]) -> dict[str, object]:
    """OpenAI's response_format for a call of one of `tools`."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": _function(tool)["name"]}, "arguments": _function(tool)["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return {"type": "json_schema", "json_schema": {"name": "call", "schema": {"anyOf": calls}}}


def _function(tool: Tool) -> Mapping[str, object]:
    function = tool["function"]
    assert isinstance(function, Mapping)
    return function


def _purpose(tool: Tool) -> str:
    return str(_function(tool).get("description") or _function(tool)["name"])


def _in_prompt(request: Request) -> Request:
    """The same with the tools as text in the system prompt, as servers have it that leave no grammar beside tools."""
    tools = "\n".join(json.dumps(_function(tool)) for tool in request.tools)
    text = (
        f'{request.instructions}\nAnswer with a call of a tool: {{"name": …, "arguments": …}}. Tools:\n{tools}'.strip()
    )
    others = request.turns
    return replace(request, messages=({"role": "system", "content": text}, *others), tools=())


def _calls(reply: Reply) -> list[tuple[str, object]]:
    """Names and arguments of calls, also of those that lie in the text."""
    return [(call.name, call.values) for call in reply.calls] or calls_in(reply.answer)


def _fault(tools: Sequence[Tool], reply: Reply) -> str:
    """What is wrong with the calls of an answer, or nothing."""
    known = {str(_function(tool)["name"]): _function(tool)["parameters"] for tool in tools}
    for name, arguments in _calls(reply):
        if name not in known:
            return f"it calls {name[:60]!r}, and there are {', '.join(known)[:120]}"
        if not isinstance(arguments, Mapping):
            return f"the arguments of {name} are no JSON object"
        schema = known[name]
        schema = schema if isinstance(schema, Mapping) else {}
        properties, required = schema.get("properties"), schema.get("required")
        has = properties if isinstance(properties, Mapping) else {}
        unknown = [key for key in arguments if has and key not in has]
        missing = [key for key in required if key not in arguments] if isinstance(required, list) else []
        if unknown or missing:
            what = f"has no {unknown[0]!r}" if unknown else f"needs {missing[0]!r}"
            return f"it calls {name}, which {what}"
    return ""


def _request(finding: Finding, subject: Subject) -> Request:
    at = finding.details["exchange"]
    assert subject.chat is not None and isinstance(at, int)
    return subject.chat.exchanges[at].request
