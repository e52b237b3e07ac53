"""Prompts in which a document stays text: nothing in it opens a turn, ends one, or becomes a special token.

llama.cpp reads `<|im_end|>` and its like as tokens wherever they are in a rendered prompt. So the template is
rendered around marks, and the texts that the marks stand for are tokenized apart from it, as plain text.
"""

import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from settle.infer.prompt_encoder import PromptEncoder

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's types of tokens


class Turn(NamedTuple):
    """One role's message, in pieces: each is tokenized by itself, so that their counts add up."""

    role: str
    texts: Sequence[str]


class Fence:
    """Makes prompts for one model. arguments: of its template."""

    def __init__(self, model: PromptEncoder, **arguments: object) -> None:
        self._model, self._arguments = model, arguments

    def ids(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a prompt, ready for an answer: through the chat template, or the texts one after the other where the
        model takes no turns."""
        if not self._model.takes_turns:
            return self._model.opened([i for turn in turns for text in turn.texts for i in self.tokens(text)])
        ids: list[int] = []
        for written, place in self._rendered([turn.role for turn in turns]):
            ids += self._model.tokenize(written, special=True)
            if place is not None:
                ids += [i for text in turns[place].texts for i in self.tokens(text)]
        return self._model.opened(ids)

    def tokens(self, text: str) -> list[int]:
        """Ids of one piece as it is in a prompt."""
        if self._signs:
            text = self._signs.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return self._model.tokenize(text)

    def _rendered(self, roles: Sequence[str]) -> list[tuple[str, int | None]]:
        """(what the template writes, which turn comes after it), in order."""
        mark = f"q{secrets.token_hex(8)}q"
        messages = [{"role": role, "content": f"{mark}{i}{mark}"} for i, role in enumerate(roles)]
        prompt = self._model.render(messages, arguments=self._arguments)
        *pairs, last = re.split(rf"{mark}(\d+){mark}", prompt)
        return [(pairs[i], int(pairs[i + 1])) for i in range(0, len(pairs), 2)] + [(last, None)]

    @cached_property
    def _signs(self) -> re.Pattern[str] | None:
        """What a model would take for the template's own even in plain text: tokens that llama.cpp finds in every text,
        and what the template writes around turns in plain letters, such as `[/INST]`."""
        metadata = self._model.metadata
        tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
        pairs = zip(tokens, types, strict=False) if isinstance(tokens, list) and isinstance(types, list) else ()
        kinds = {token: kind for token, kind in pairs if kind in (_CONTROL, _USER_DEFINED)}
        signs = {token for token, kind in kinds.items() if kind == _USER_DEFINED and len(token) > 2 and token.strip()}
        if self._model.takes_turns:
            control = "|".join(re.escape(token) for token, kind in kinds.items() if kind == _CONTROL) or r"(?!)"
            for written, _ in self._rendered(["user", "assistant", "user"]):
                for line in re.split(rf"{control}|\n", written):
                    signs |= {sign for sign in (line.strip(), *line.split()) if _is_sign(sign, line)}
        longest_first = sorted(signs, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if signs else None


def _is_sign(text: str, line: str) -> bool:
    """A bare word, such as a role's name, is no sign: it is in every document."""
    return len(text) > 2 and not text.isalnum() and (text == line.strip() or text[0] in "[<")
