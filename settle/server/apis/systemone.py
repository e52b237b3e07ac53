"""TypeSafe's System One API (https://docs.typesafe.ai), as of 26 November 2026.

It has typed questions about a state, answered with probabilities; llama.cpp's tools/server/README.md describes it too.
It is weeks old: whatever changes in it changes here. Its questions have the form of `settle.data.decisions`. Images
(`assets`, and llama.cpp's `images` and `files`) and box questions are refused.
"""

from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from settle.server.apis import Api, llamacpp
from settle.server.gateway import Call, Endpoint, json_response
from settle.server.requests.readings import MOST_QUESTIONS, decide, question_of, text_of
from settle.wire.errors import ApiError
from settle.wire.fields import Body, Name
from settle.wire.types import JsonObject

PATHS = ("/v1/systemone", "/systemone")


class SystemOneBody(Body):
    """What /v1/systemone takes."""

    state: Annotated[str, Field(max_length=1 << 24)] | JsonObject | list[object]
    questions: Annotated[dict[Name, JsonObject], Field(min_length=1, max_length=MOST_QUESTIONS)]
    model: Name = ""


class SystemOne(Api):
    """Answers by the names of their questions."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        endpoint = self.endpoint(systemone)
        return [("POST", path, endpoint) for path in PATHS]

    def error(self, error: ApiError) -> JsonObject:
        """llama.cpp's form, which TypeSafe's clients read too."""
        return llamacpp.LlamaCpp().error(error)

    def owns(self, path: str) -> bool:
        return path in PATHS


async def systemone(call: Call, body: SystemOneBody) -> Response:
    entry = call.find(body.model)
    questions = {name: question_of(value, f"questions.{name}") for name, value in body.questions.items()}
    answers, tokens = await decide(call.pool, entry, text_of(body.state), list(questions.values()))
    call.record.prompt_tokens = tokens
    named = {name: answer.to_json() for name, answer in zip(questions, answers, strict=True)}
    usage = {"input_tokens": tokens, "output_tokens": 0}
    return json_response({"model": entry.id, "answers": named, "usage": usage})
