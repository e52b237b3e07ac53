"""Function calls of BFCL v4: how many are calls that fit, here and in llama.cpp bare.

    pip download --no-deps bfcl-eval
    python bench/bfcl.py bfcl_eval-….whl MODEL.gguf [--each 20] [--choice auto required] [--template FILE.jinja]
    python bench/bfcl.py bfcl_eval-….whl MODEL.gguf --log calls.jsonl   # continues where it was interrupted

Both sides are the same child process: its own port, and `settle serve`'s gateway in front of it. An answer counts as
valid when it is a call, or several, of functions that were given, with arguments that fit their schemas (jsonschema).
Right: of the functions that BFCL expects; for irrelevance, no call at all. With --template the model is given another
chat template; llama.cpp reads its calls by that template, so its rows are those of the template's own parser.
With --log every answer is a line of a file, and what is in the file is not asked again.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
from bare_server import Side, both_sides

CATEGORIES = ("simple_python", "multiple", "parallel", "live_simple", "live_multiple", "irrelevance")
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None, "String": "string", "ArrayList": "array"}


def schema(given: Any) -> Any:
    """BFCL's schemas name types after Python's."""
    if isinstance(given, list):
        return [schema(item) for item in given]
    if not isinstance(given, dict):
        return given
    told = {key: schema(value) for key, value in given.items() if key not in ("default", "optional", "format")}
    if isinstance(given.get("type"), str):
        kind = TYPES.get(given["type"], given["type"])
        told = {key: value for key, value in told.items() if key != "type"} | ({"type": kind} if kind else {})
    return told


def cases(wheel: Path, category: str, each: int) -> list[dict[str, Any]]:
    with zipfile.ZipFile(wheel) as files:
        lines = files.read(f"bfcl_eval/data/BFCL_v4_{category}.json").decode().splitlines()
        answers = {}
        if category != "irrelevance":
            told = files.read(f"bfcl_eval/data/possible_answer/BFCL_v4_{category}.json").decode().splitlines()
            answers = {
                case["id"]: [name for call in case["ground_truth"] for name in call] for case in map(json.loads, told)
            }
    chosen = random.Random(0).sample([json.loads(line) for line in lines], each)
    return [
        {
            "messages": case["question"][0],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": function["name"],
                        "description": function.get("description", ""),
                        "parameters": schema(function["parameters"]),
                    },
                }
                for function in case["function"]
            ],
            "expected": answers.get(case["id"]),
            "id": case["id"],
        }
        for case in chosen
    ]


def asked(side: Side, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {side.key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{side.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=1200) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def judged(status: int, answer: dict[str, Any], case: dict[str, Any]) -> str:
    """Return valid (and right or wrong), invalid, cut (by the limit of tokens), text or refused."""
    if status != 200:
        return "refused"
    choice = answer["choices"][0]
    calls = choice["message"].get("tool_calls") or []
    if not calls:
        has_call = "tool_call" in (choice["message"].get("content") or "")
        return "cut" if has_call and choice["finish_reason"] == "length" else "invalid" if has_call else "text"
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in case["tools"]}
    try:
        for call in calls:
            jsonschema.validate(json.loads(call["function"]["arguments"]), schemas[call["function"]["name"]])
    except (KeyError, ValueError, jsonschema.ValidationError):
        return "invalid"
    names = [call["function"]["name"] for call in calls]
    return "right" if sorted(names) == sorted(case["expected"] or ()) else "valid"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--choice", nargs="*", default=["auto", "required"])
    parser.add_argument("--side", nargs="*", default=["settle", "llama.cpp"])
    parser.add_argument("--category", nargs="*", default=CATEGORIES)
    parser.add_argument("--template", type=Path)
    parser.add_argument("--limit", type=int, default=512, help="tokens of an answer")
    parser.add_argument("--log", type=Path, help="answers, one a line")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = retemplated(given.model, given.template, Path(folder)) if given.template else given.model
        compare(given, model)


def retemplated(model: Path, template: Path, folder: Path) -> Path:
    """Copy a GGUF file with another chat template."""
    path = folder / f"{model.stem}-{template.stem}.gguf"
    script = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata"]
    command = [*script, "--chat-template-file", str(template), str(model), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def compare(given: argparse.Namespace, model: Path) -> None:
    log = Log(given.log, f"{given.model.stem}/{given.template.stem if given.template else 'own'}/{given.limit}")
    with both_sides(model, 1, 4096) as (gateway, bare):
        sides = {name: side for name, side in (("settle", gateway), ("llama.cpp", bare)) if name in given.side}
        print("| category | tool_choice | side | answers | calls | valid of the calls | right | text | refused | cut |")
        print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
        for category in given.category:
            found = cases(given.wheel, category, given.each)
            for choice in given.choice if category != "irrelevance" else ["auto"]:
                for name, side in sides.items():
                    outcomes = []
                    for case in found:
                        body = request(case, choice) | {"max_tokens": given.limit}
                        outcomes.append(log.outcome(f"{category}/{choice}/{name}/{case['id']}", side, body, case))
                    print(row(category, choice, name, outcomes), flush=True)


def request(case: dict[str, Any], choice: str) -> dict[str, Any]:
    body = {"model": "m", "messages": case["messages"], "tools": case["tools"]}
    return body | {"tool_choice": choice, "temperature": 0}


class Log:
    """Outcomes by case, and in a file when there is one. model: what is asked, as a part of the key."""

    def __init__(self, path: Path | None, model: str) -> None:
        self.path, self.model, self.known = path, model, dict[str, str]()
        if path is not None and path.exists():
            lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            self.known = {line["key"]: line["outcome"] for line in lines}

    def outcome(self, name: str, side: Side, body: dict[str, Any], case: dict[str, Any]) -> str:
        key = f"{self.model}/{name}"
        if key not in self.known:
            began = time.monotonic()
            status, answer = asked(side, body)
            self.known[key] = judged(status, answer, case)
            line = {"key": key, "outcome": self.known[key], "seconds": round(time.monotonic() - began, 1)}
            line |= {} if self.known[key] == "right" else {"status": status, "answer": answer}
            if self.path is not None:
                with self.path.open("a", encoding="utf-8") as f:
                    f.write(json.dumps(line) + "\n")
        return self.known[key]


def row(category: str, choice: str, name: str, outcomes: list[str]) -> str:
    counts = Counter(outcomes)
    valid = counts["right"] + counts["valid"]
    calls = valid + counts["invalid"]
    right = counts["text"] if category == "irrelevance" else counts["right"]
    share = f"{valid / calls:.0%}" if calls else "–"
    return (
        f"| {category} | {choice} | {name} | {len(outcomes)} | {calls} | {share} | {right} | {counts['text']} "
        f"| {counts['refused']} | {counts['cut']} |"
    )


if __name__ == "__main__":
    main()
