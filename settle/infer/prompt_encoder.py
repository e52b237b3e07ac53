"""Text to ids and back, by the tokenizer and the chat template of a model in a llama.cpp child."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

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
        """Whether the model answers through a chat template; otherwise it completes text."""
        return takes_turns(self.metadata)

    def tokenize(self, text: str, special: bool = False, opening: bool = False) -> list[int]:
        """Ids of a text. special: whether `<|end|>` and its like in it become tokens; opening: whether llama.cpp may
        put before it the token that opens a text by the file's own settings."""
        body = {"content": text, "add_special": opening, "parse_special": special}
        ids: list[int] = self._child.post("/tokenize", body)["tokens"]
        return ids

    def plain(self, text: str) -> list[int]:
        """Ids of a text to complete: no template, special tokens in it are text, and before it the token that opens a
        text where the file says that its model expects one, or where there is no text."""
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
        """Messages (`{"role", "content"}`), and the tools they may call, through the file's own chat template, ready
        for an answer. arguments: of the template."""
        body: dict[str, object] = {"messages": list(messages)}
        body |= {"tools": list(tools)} if tools else {}
        body |= {"chat_template_kwargs": dict(arguments)} if arguments else {}
        prompt: str = self._child.post("/apply-template", body)["prompt"]
        return prompt

    def turns(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> list[int]:
        """Ids of rendered messages; llama.cpp leaves out the token that opens a text where the file says that every
        text has it."""
        return self.opened(self.tokenize(self.render(messages, tools), special=True))

    def opened(self, ids: list[int]) -> list[int]:
        """Ids behind the token that opens a text, where the file says that every text has it."""
        return self._opened(ids) if self._is_opened else ids

    @property
    def _is_opened(self) -> bool:
        """Whether the file says that every text begins with a token of its own."""
        is_spm = self.metadata.get("tokenizer.ggml.model") == "llama"  # llama.cpp's default where the file is silent
        return bool(self.metadata.get("tokenizer.ggml.add_bos_token", is_spm))

    def _opened(self, ids: list[int]) -> list[int]:
        opening = self.metadata.get("tokenizer.ggml.bos_token_id")
        return [opening, *ids] if isinstance(opening, int) and ids[:1] != [opening] else ids
