"""Tool calls by chat template: whether required calls come, and calls in the template's own form are recognised.

    python bench/tool_templates.py MODEL.gguf [TEMPLATES] > bench/results/tool_templates.md

The model is given each template of TEMPLATES (a folder; by default those of the tests) in turn, with two tools. Both
sides are the same child process. A request counts as kept when the answer is calls whose arguments fit (jsonschema).
"""

import argparse
import asyncio
import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
from bare_server import Side, both_sides
from bfcl import retemplated
from conformance import ask

from settle.infer.tool_calls import CallReader, function_call
from settle.server.requests.required_calls import IDS, NAMES, VALUES, CallForm, read_form

TEMPLATES = Path(__file__).parents[1] / "tests" / "chat_templates"
PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
DAYS = {"type": "integer", "minimum": 1, "maximum": 9}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": DAYS},
    "required": ["city", "days"],
}
SCHEMAS = {"find_place": PLACE, "weather": WEATHER}
FUNCTIONS = [{"name": name, "description": f"to {name}", "parameters": schema} for name, schema in SCHEMAS.items()]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
FLAT = [{"type": "function", **function} for function in FUNCTIONS]
THEIRS = [{"name": function["name"], "input_schema": function["parameters"]} for function in FUNCTIONS]
TURNS = [{"role": "user", "content": "What is the weather in Rome for three days?"}]
CHAT = {"model": "m", "messages": TURNS, "tools": TOOLS, "max_tokens": 96, "temperature": 0}
NAMED = {"type": "function", "function": {"name": "weather"}}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "required": ("/v1/chat/completions", CHAT | {"tool_choice": "required"}),
    "by name": ("/v1/chat/completions", CHAT | {"tool_choice": NAMED}),
    "several": ("/v1/chat/completions", CHAT | {"tool_choice": "required", "parallel_tool_calls": True}),
    "any (Anthropic)": (
        "/v1/messages",
        {"model": "m", "messages": TURNS, "tools": THEIRS, "tool_choice": {"type": "any"}, "max_tokens": 96},
    ),
    "required (Responses)": (
        "/v1/responses",
        {"model": "m", "input": TURNS[0]["content"], "tools": FLAT, "tool_choice": "required", "max_output_tokens": 96},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("templates", type=Path, nargs="?", default=TEMPLATES)
    given = parser.parse_args()
    print("# Tool calls by chat template\n")
    print("By `python bench/tool_templates.py`: *yes* is an answer of calls that fit; *form*: whose the calls' is.\n")
    print(f"| template | form | {' | '.join(REQUESTS)} | its own form is read | llama.cpp alone, required |")
    print(f"|---|---|{'---|' * (len(REQUESTS) + 2)}")
    for template in sorted(given.templates.glob("*.jinja")):
        with tempfile.TemporaryDirectory() as folder:
            print(row(retemplated(given.model, template, Path(folder)), template), flush=True)


def row(model: Path, template: Path) -> str:
    with both_sides(model, 1, 4096) as (gateway, bare):
        knows_tools = props(bare)["supports_tools"] and props(bare)["supports_tool_calls"]
        form = read_form(*(rendered(gateway, number) for number in (0, 1, 2))) if knows_tools else None
        kept = [yes(is_kept(*ask(gateway, path, body))) for path, body in REQUESTS.values()]
        alone = yes(is_kept(*ask(bare, *REQUESTS["required"])))
    return f"| {template.stem} | {'its own' if form else 'settle'} | {' | '.join(kept)} | {is_read(form)} | {alone} |"


def props(bare: Side) -> dict[str, bool]:
    """Return what llama.cpp says of the template."""
    request = urllib.request.Request(f"{bare.url}/props", headers={"Authorization": f"Bearer {bare.key}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        caps: dict[str, bool] = json.load(answer)["chat_template_caps"]
    return caps


def rendered(side: Side, num_calls: int) -> str:
    """Return the template's prompt before a call, or after a number of calls."""
    calls = [function_call(IDS[n], NAMES[n], json.dumps(VALUES)) for n in range(num_calls)]
    turns: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    turns += [{"role": "assistant", "content": "", "tool_calls": calls}] if calls else []
    turns += [{"role": "tool", "tool_call_id": call["id"], "content": "probe_result"} for call in calls]
    parameters = {"type": "object", "properties": {key: {"type": "string"} for key in VALUES}}
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in NAMES]
    answer = ask(side, "/apply-template", {"model": "m", "messages": turns, "tools": tools})[1]
    return str(answer.get("prompt", ""))


def is_read(form: CallForm | None) -> str:
    """Whether a call in the template's form, found in a text, is one."""
    if form is None:
        return "–"
    text = f"{form.opening}weather{form.separator}{json.dumps({'city': 'Rome', 'days': 3})}"
    text += closers(text) + form.closing.lstrip("]}")

    async def read() -> int:
        reader = CallReader(TOOLS, fits)  # type: ignore[arg-type]
        await reader.feed(text)
        await reader.end()
        return reader.num_calls

    return yes(asyncio.run(read()) == 1)


def closers(text: str) -> str:
    """Return what closes the brackets that a text leaves open."""
    open_ones: list[str] = []
    for sign in text:
        if sign in "{[":
            open_ones.append({"{": "}", "[": "]"}[sign])
        elif open_ones and sign == open_ones[-1]:
            open_ones.pop()
    return "".join(reversed(open_ones))


async def fits(schema: dict[str, Any], text: str) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def is_kept(status: int, answer: dict[str, Any]) -> bool:
    """Whether an answer in any API's form is calls that fit."""
    if "choices" in answer:
        calls = answer["choices"][0]["message"].get("tool_calls") or []
        found = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    elif "output" in answer:
        items = [item for item in answer["output"] if item["type"] == "function_call"]
        found = [(item["name"], json.loads(item["arguments"])) for item in items]
    else:
        found = [(b["name"], b["input"]) for b in answer.get("content", ()) if b["type"] == "tool_use"]
    return status == 200 and bool(found) and all(is_valid(name, arguments) for name, arguments in found)


def is_valid(name: str, arguments: object) -> bool:
    return name in SCHEMAS and jsonschema.Draft202012Validator(SCHEMAS[name]).is_valid(arguments)


def yes(value: bool) -> str:
    return "yes" if value else "**no**"


if __name__ == "__main__":
    main()
