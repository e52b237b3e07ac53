"""How a chat template writes a call, found by rendering one: the text around a name and its arguments.

A model that has to call a tool is given the beginning of a call in its own form, and completes it under a grammar.
"""

import json
import os
import re
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from settle.infer.tool_calls.types import function_call
from settle.server.errors import ApiError
from settle.server.models.loaded_model import LoadedModel
from settle.server.requests.engine import apply_template
from settle.server.wire_types import ChatMessage, JsonObject, Tool

NAMES, IDS = ("probe_one", "probe_two"), ("call00001", "call00002")  # some templates want ids of nine characters
VALUES = {"probe_key": "probe_value"}
WRITTEN_VALUES = re.compile(r'\{\s*"probe_key":\s*"probe_value"\s*\}')
MOST_FORMS = 64  # remembered of one model
LONGEST_REPLACED = 64  # characters: of reasoning that a generation prompt opens and a call leaves out
# where a prompt ends within reasoning, the reasoning is closed before a call
REASONING = {
    "<think>": "</think>\n\n",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
}


@dataclass(frozen=True)
class CallForm:
    """`opening` NAME `separator` ARGUMENTS, and `between` before the name of each further call; arguments are JSON.

    between: None where a turn holds one call. closing: what may follow the last call. replaced: the end of the
    generation prompt that gives way to the opening."""

    opening: str
    separator: str
    between: str | None
    closing: str = ""
    replaced: str = ""

    def prompt(self, rendered: str) -> str:
        """A rendered prompt that goes on to the name of a call."""
        text = rendered.removesuffix(self.replaced)
        if not self.replaced:
            text += next((end for start, end in REASONING.items() if text.rstrip().endswith(start)), "")
        return text + self.opening


# of templates that have none, or one whose arguments are not JSON
OWN_FORM = CallForm(
    '<tool_call>{"name": "', '", "arguments": ', '}</tool_call>\n<tool_call>{"name": "', "}</tool_call>"
)


_FORMS: WeakKeyDictionary[LoadedModel, dict[str, CallForm | None]] = WeakKeyDictionary()


async def template_form(loaded: LoadedModel, arguments: JsonObject) -> CallForm | None:
    """The form of calls of the model's template, or None where it shows none that can be kept to.

    arguments: of the template."""
    forms, key = _FORMS.setdefault(loaded, {}), json.dumps(arguments, sort_keys=True)
    if key not in forms:
        if len(forms) >= MOST_FORMS:  # of arguments that a client makes up
            forms.clear()
        forms[key] = await _probe(loaded, arguments)
    return forms[key]


async def _probe(loaded: LoadedModel, arguments: JsonObject) -> CallForm | None:
    try:
        before, one = [await _rendered(loaded, arguments, num_calls) for num_calls in (0, 1)]
    except ApiError:
        return None
    try:
        two = await _rendered(loaded, arguments, 2)
    except ApiError:  # such as Llama's: one call in a turn
        two = ""
    return read_form(before, one, two)


def read_form(before: str, one: str, two: str) -> CallForm | None:
    """The form that three renderings show: a prompt without a call, and the same with one call, and with two."""
    start = len(os.path.commonprefix([before, one]))
    name = one.find(NAMES[0], start)
    values = WRITTEN_VALUES.search(one, name)
    if name < 0 or not values or len(before) - start > LONGEST_REPLACED:
        return None
    opening, separator = one[start:name], one[name + len(NAMES[0]) : values.start()]
    between, closing = _between(one[values.end() :], two, start)
    return CallForm(opening, separator, between, closing, before[start:])


def _between(rest: str, two: str, start: int) -> tuple[str | None, str]:
    """What stands between two calls, and the part of it that also closes a single one. rest: what follows that."""
    first = WRITTEN_VALUES.search(two, start)
    second = two.find(NAMES[1], first.end()) if first else -1
    if not first or second < 0 or not WRITTEN_VALUES.search(two, second):
        return None, ""
    between = two[first.end() : second]
    # the ids of calls are theirs, and no part of the form
    between = between.replace(IDS[1], IDS[0])
    return between, os.path.commonprefix([between, rest])


async def _rendered(loaded: LoadedModel, arguments: JsonObject, num_calls: int) -> str:
    calls = [function_call(IDS[n], NAMES[n], json.dumps(VALUES)) for n in range(num_calls)]
    messages: list[ChatMessage] = [{"role": "user", "content": "hello"}]
    if calls:
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    for call in calls:
        name = call["function"]["name"]
        messages.append({"role": "tool", "content": "probe_result", "tool_call_id": call["id"], "name": name})
    body: JsonObject = {"messages": messages, "tools": [_tool(name) for name in NAMES]}
    return await apply_template(loaded, body | ({"chat_template_kwargs": arguments} if arguments else {}))


def _tool(name: str) -> Tool:
    properties = {key: {"type": "string"} for key in VALUES}
    parameters = {"type": "object", "properties": properties, "required": list(VALUES)}
    return {"type": "function", "function": {"name": name, "description": "a probe", "parameters": parameters}}
