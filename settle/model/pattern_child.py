"""The process that matches the patterns of an adapter's file, which may be written to never end.

A request: [patterns, modules]. The answer: for each module the place of the first pattern that matches it, as peft
matches them, or null; or the text of an error.
"""

import re
from typing import Any

from settle.base.line_child import answer_requests


def _first_matches(request: Any) -> list[int | None] | str:
    patterns, modules = request
    try:
        known = [re.compile(rf"(.*\.)?({pattern})$") for pattern in patterns]
    except (re.error, RecursionError, OverflowError) as e:
        return str(e)
    return [next((i for i, one in enumerate(known) if one.match(module)), None) for module in modules]


if __name__ == "__main__":
    answer_requests(_first_matches)
