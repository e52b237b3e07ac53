"""Tool calls by chat template: is a call that must come one, and is a call in the template's own form read as one?

    python bench/tool_templates.py MODEL.gguf [TEMPLATES] > bench/results/tool_templates.md

The model is given each template of TEMPLATES (a folder; by default those of the tests) in turn, with two tools. Both
sides are the same child process. A request counts as kept when the answer is calls whose arguments fit (jsonschema).
"""

from pathlib import Path
from typing import Any

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
