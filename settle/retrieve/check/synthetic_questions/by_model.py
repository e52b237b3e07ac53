"""Questions that a language model writes about passages.

The search does not filter them: that would keep only what is found anyway. A question is kept for its own sake: it is
one, in its own words, and most of its weight is in words of the passage, so that it is about the passage.
"""

import re

from settle.infer.client import LlamaClient
from settle.infer.prompt_encoder import Fence, Turn

LONGEST = 40  # tokens of a question
_READ = 1200  # characters of a passage
_ORDER = (
    "Write one short question that this text answers, as somebody would ask who has not read it. Only the question."
)
_FIRST = re.compile(r"[^\n?]{12,200}\?")


def write_question(model: LlamaClient, text: str) -> str:
    """A question that the model writes about a passage, or "" where it wrote none."""
    fence = Fence(model, enable_thinking=False)
    if model.takes_turns:
        ids = fence.ids([Turn("user", [f"{_ORDER}\n\n", text[:_READ]])])
    else:
        ids = fence.ids([Turn("user", [text[:_READ], "\n\nA question that this answers:"])])
    reply = model.answer(ids, LONGEST).text
    match = _FIRST.search(reply)
    return match[0].strip(" -*\"'") if match else ""
