"""The process that compiles and renders chat templates: `settle.base.chat_template` asks it, one template a process.

A request: {"source", "tokens", "now", "messages", "tools", "arguments", "cuts"}. A cut, [count, add_generation_prompt],
asks for the first `count` messages. The answer: [texts, null or [kind of failure, reason]]; the texts are those of the
first cuts, as many as one answer holds.
"""

import datetime
from typing import Any, TypedDict

from jinja2.exceptions import SecurityError

from settle.base.chat_template.sandbox import Objected, Refused, Template
from settle.base.fenced_child import answer_requests

MOST_TEXTS, MOST_CHARACTERS = 16, 1 << 22  # of one answer; the last text may exceed them


class RenderRequest(TypedDict):
    """Renderings of one conversation. now: as ISO 8601, or None for the time of the rendering."""

    source: str
    tokens: dict[str, str]
    now: str | None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    arguments: dict[str, Any]
    cuts: list[tuple[int, bool]]


class Renderer:
    """Answers requests; the template of the last one stays compiled."""

    def __init__(self) -> None:
        self._source: str | None = None

    def answer(self, request: Any) -> tuple[list[str], tuple[str, str] | None]:
        asked: RenderRequest = request
        texts: list[str] = []
        try:
            if self._source != asked["source"]:
                self._source = None
                self._template = Template(asked["source"])
                self._source = asked["source"]
            given = {"tools": asked["tools"], "documents": None} | asked["tokens"]
            now = datetime.datetime.fromisoformat(asked["now"]) if asked["now"] else None
            for count, wants_prompt in asked["cuts"]:
                # a template changes nothing that it is given: the sandbox is immutable
                values = {"messages": asked["messages"][:count]} | given | {"add_generation_prompt": wants_prompt}
                texts.append(self._template.render(values | asked["arguments"], now))
                if len(texts) == MOST_TEXTS or sum(map(len, texts)) > MOST_CHARACTERS:
                    break
        except SecurityError as e:
            return texts, ("stopped", str(e)[:300])
        except Objected as e:
            return texts, ("objected", str(e)[:300])
        except Refused as e:
            return texts, ("refused" if self._source else "grammar", str(e)[:300])
        return texts, None


if __name__ == "__main__":
    answer_requests(Renderer().answer)
