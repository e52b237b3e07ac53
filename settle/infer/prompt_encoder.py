"""Text to ids and back, by the tokenizer and the chat template of a model in a llama.cpp child."""

import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from settle.infer.child_process import Child
from settle.library.facts import Metadata, takes_turns

Message = Mapping[str, object]  # {"role", "content", …}


class PromptEncoder:
    """Encodes prompts for one model. Threads may share it.

    metadata: of its GGUF file, with the chat template by which it takes turns.
    """

    def __init__(self, child: Child, metadata: Metadata) -> None:
        self._child, self.metadata = child, metadata
        tokens = metadata.get("tokenizer.ggml.tokens")
        self._tokens: list[str] = tokens if isinstance(tokens, list) else []

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self._child.load.context

    @property
    def num_vocab(self) -> int:
        return len(self._tokens)

    @property
    def takes_turns(self) -> bool:
        """True when the model answers through a chat template; otherwise it completes text."""
        return takes_turns(self.metadata)

    def tokenize(self, text: str, special: bool = False, opening: bool = False) -> list[int]:
        """Return the ids of a text.

        special: whether `<|end|>` and its like in it become tokens; opening: whether llama.cpp may put before it the
        token that opens a text by the file's own settings.
        """
        body = {"content": text, "add_special": opening, "parse_special": special}
        ids: list[int] = self._child.post("/tokenize", body)["tokens"]
        return ids

    def plain(self, text: str) -> list[int]:
        """Return the ids of a text to complete: no template, and special tokens in it are text.

        Before it comes the token that opens a text where the file says that its model expects one, or where there is no
        text.
        """
        ids = self.tokenize(text)
        return ids if ids and not self._is_opened else self._opened(ids)

    def detokenize(self, ids: Sequence[int]) -> str:
        text: str = self._child.post("/detokenize", {"tokens": list(map(int, ids))})["content"]
        return text

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] = (),
        arguments: Mapping[str, object] = MappingProxyType({}),
    ) -> str:
        """Render messages (`{"role", "content"}`), and the tools they may call, ready for an answer.

        It goes through the file's own chat template. arguments: of the template.
        """
        body: dict[str, object] = {"messages": list(messages)}
        body |= {"tools": list(tools)} if tools else {}
        body |= {"chat_template_kwargs": dict(arguments)} if arguments else {}
        prompt: str = self._child.post("/apply-template", body)["prompt"]
        return prompt

    def turns(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> list[int]:
        """Return the ids of rendered messages.

        llama.cpp leaves out the token that opens a text where the file says that every text has it.
        """
        return self.opened(self.tokenize(self.render(messages, tools), special=True))

    def opened(self, ids: list[int]) -> list[int]:
        """Ids behind the token that opens a text, where the file says that every text has it."""
        return self._opened(ids) if self._is_opened else ids

    @property
    def _is_opened(self) -> bool:
        """True when the file says that every text begins with a token of its own."""
        is_spm = self.metadata.get("tokenizer.ggml.model") == "llama"  # llama.cpp's default where the file is silent
        return bool(self.metadata.get("tokenizer.ggml.add_bos_token", is_spm))

    def _opened(self, ids: list[int]) -> list[int]:
        opening = self.metadata.get("tokenizer.ggml.bos_token_id")
        return [opening, *ids] if isinstance(opening, int) and ids[:1] != [opening] else ids


_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's types of tokens


class Turn(NamedTuple):
    """One role's message, in pieces: each is tokenized by itself, so that their counts add up."""

    role: str
    texts: Sequence[str]


class Fence:
    """Prompts in which a document stays text: nothing in it opens a turn, ends one, or becomes a special token.

    llama.cpp reads `<|im_end|>` and its like as tokens wherever they are in a rendered prompt. So the template is
    rendered around marks, and the texts that the marks stand for are tokenized apart from it, as plain text.
    arguments: of the template.
    """

    def __init__(self, model: PromptEncoder, **arguments: object) -> None:
        self._model, self._arguments = model, arguments

    def ids(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of a prompt, ready for an answer.

        Through the chat template, or the texts one after the other where the model takes no turns.
        """
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
        """Return (what the template writes, which turn comes after it), in order."""
        mark = f"q{secrets.token_hex(8)}q"
        messages = [{"role": role, "content": f"{mark}{i}{mark}"} for i, role in enumerate(roles)]
        prompt = self._model.render(messages, arguments=self._arguments)
        *pairs, last = re.split(rf"{mark}(\d+){mark}", prompt)
        return [(pairs[i], int(pairs[i + 1])) for i in range(0, len(pairs), 2)] + [(last, None)]

    @cached_property
    def _signs(self) -> re.Pattern[str] | None:
        """What a model would take for the template's own even in plain text.

        Tokens that llama.cpp finds in every text, and what the template writes around turns in plain letters, such as
        `[/INST]`.
        """
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
    """Return whether a line is a sign. A bare word, such as a role's name, is none: it is in every document."""
    return len(text) > 2 and not text.isalnum() and (text == line.strip() or text[0] in "[<")
