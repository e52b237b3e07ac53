"""Questions that a language model asks of passages.

None is asked back of the search to see whether it finds the passage: that would count only what is found anyway. What
is kept is told by the question alone: it is one, it is in words of its own, and most of what it tells stands in the
passage, so that it is about that and not about anything.
"""

import re

from settle.infer.client import LlamaClient
from settle.infer.safe_prompt import Fence, Turn

LONGEST = 40  # tokens of a question
_READ = 1200  # characters of a passage
_ORDER = (
    "Write one short question that this text answers, as somebody would ask who has not read it. Only the question."
)
_FIRST = re.compile(r"[^\n?]{12,200}\?")


def invented(model: LlamaClient, text: str) -> str:
    """A question that the model asks of a passage, or "" where it wrote none."""
    fence = Fence(model, enable_thinking=False)
    if model.takes_turns:
        ids = fence.ids([Turn("user", [f"{_ORDER}\n\n", text[:_READ]])])
    else:
        ids = fence.ids([Turn("user", [text[:_READ], "\n\nA question that this answers:"])])
    said, _ = model.answer(ids, LONGEST)
    found = _FIRST.search(said)
    return found[0].strip(" -*\"'") if found else ""
