"""A GGUF file running in llama.cpp, in a child process (see `server_child.py`)."""

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Warn
from settle.data.tokenizer.vocabulary import require_same_tokens
from settle.formats import Metadata
from settle.formats.gguf import embeds, pooling, read_gguf
from settle.formats.gguf.metadata import text
from settle.formats.lora_gguf import read_lora, require_fit
from settle.infer.child_process import SPARE_BYTES, Child, ChildModel, Draft, Load, fitting_context, needed_bytes
from settle.infer.client import LORA, LlamaClient
from settle.infer.template_check import require_sound_model
from settle.library.facts import PLAIN_TEXT_KEY, TEMPLATE_KEY, bytes_per_token, longest_context
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_draft

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(ChildModel[Child], LlamaClient):
    """One model loaded in one llama.cpp child of its own. The file is checked in Python before the child may open it.

    context: the largest number of tokens of prompt and answer together; None takes the model's own, as far
    as memory has room for it.
    ready_seconds: how long loading may take before it counts as failed.
    adapter: a LoRA in a GGUF file of its own, served over `path` without a merge, with the chat template that it was
    trained with if it brings one, `adapter_scale` times: an attribute that may change from one request to the next, and
    0 is the model without it.
    slots: how many requests, from as many threads, are answered at the same time; each has `context` tokens.
    draft: a small GGUF of the same tokenizer that proposes tokens for the model to agree with.
    engine: a folder with the package of another version of llama.cpp, instead of the one that is installed.
    Raises FormatError for a file that is not a sound GGUF, or an adapter of another model, UsageError for an embedder,
    and for a draft with another tokenizer, ResourceError when the context asked for does not fit into memory,
    EngineError when llama.cpp refuses the file or dies.
    """

    def __init__(
        self,
        path: Path | str,
        context: int | None = None,
        threads: int | None = None,
        ready_seconds: float = 300.0,
        adapter: Path | str | None = None,
        slots: int = 1,
        draft: Draft | None = None,
        engine: Path | None = None,
    ) -> None:
        self.path = Path(path)
        weights = read_gguf(self.path)
        metadata: Metadata = weights.metadata
        if embeds(weights.metadata):
            raise UsageError(
                f"{self.path.name} turns texts into vectors and writes none",
                "choose a model that chats; `settle index` and /v1/embeddings use this one",
            )
        self.adapter_scale = 1.0
        self.adapter = Path(adapter) if adapter else None
        template = None
        if self.adapter:
            lora = read_lora(self.adapter)
            require_fit(lora, weights, (self.adapter.name, self.path.name))
            template = text(lora.metadata, TEMPLATE_KEY)
            if template:
                metadata = {**weights.metadata, TEMPLATE_KEY: template, PLAIN_TEXT_KEY: False}
        adapters = (self.adapter,) if self.adapter else ()
        fitting = fitting_context(self.path.name, metadata, context, slots)
        if draft:
            require_same_tokens(weights.metadata, read_gguf(draft.path).metadata, (self.path.name, draft.path.name))
        files = [self.path, *adapters, *([draft.path] if draft else [])]
        per_token = bytes_per_token(metadata) * (2 if draft else 1)  # a draft keeps less than its model
        needs = needed_bytes(sum(file.stat().st_size for file in files), fitting * slots * per_token)
        load = Load(
            *(self.path, fitting, slots, adapters, template or None, threads),
            draft=draft,
            engine=engine,
            memory=needs + SPARE_BYTES,
        )
        LlamaClient.__init__(self, Child(load, ready_seconds), metadata)

    def start(self) -> None:
        """Start llama.cpp and wait until it has loaded the model. Raises EngineError."""
        require_sound_model(self.path.name, self.metadata)
        super().start()

    def _lora(self) -> list[LORA]:
        return [{"id": 0, "scale": self.adapter_scale}] if self.adapter else []


def at_once(
    work: Callable[[Item], Result], items: Iterable[Item], number: int, stop: Callable[[], object]
) -> Iterator[Result]:
    """Yield the result of each item, in order; `number` threads work.

    stop: ends what is in flight when the caller gives up, which would otherwise be waited for.
    """
    with ThreadPoolExecutor(number) as pool:
        try:
            yield from pool.map(work, items)
        except (KeyboardInterrupt, GeneratorExit):
            stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def engine_of(model: ModelRef) -> Engine:
    """Prepare the engine of a model that was found by its name, with its adapter."""
    return Engine(model.weights, adapter=model.adapter)


def draft_for(model: ModelRef, name: str, events: Events) -> Draft:
    """Return the draft that the user names for a model.

    Raises UsageError for what is not there or is no draft; whoever opens both files checks that their tokens are the
    same.
    """
    ref = resolve_draft(name)
    if ref.path.resolve() == model.weights.resolve():
        raise UsageError(
            f"{name} is the model itself", "a draft is a smaller one: `settle distill MODEL INPUTS --draft`"
        )
    if ref.proposal is None:
        return Draft(ref.path)
    speed_up = ref.proposal.speed_up
    if speed_up < 1:
        events.emit(Warn(text=f"with {name} its model was {speed_up:.2f} times as fast as alone when it was measured"))
    return Draft(ref.path, ref.proposal.tokens, ref.proposal.sure)


Input = str | Sequence[int]


class VectorEngine(ChildModel[Child]):
    """One embedder loaded in one llama.cpp child.

    most: tokens of the longest text, with those that the tokenizer puts around it; never more than the model was
    trained for. slots: texts that are read together. A file that names no pooling is read with the mean.
    Raises FormatError for a file that is not a sound GGUF, UsageError for a model that ranks, EngineError when
    llama.cpp refuses the file or dies.
    """

    def __init__(self, path: Path | str, most: int = 512, threads: int | None = None, slots: int = 4) -> None:
        self.path = Path(path)
        self.metadata = read_gguf(self.path).metadata
        own_pooling = pooling(self.metadata)
        if own_pooling == "rank":
            raise UsageError(f"{self.path.name} orders passages and gives no vectors", "choose an embedder")
        self.most = min(most, longest_context(self.path.name, self.metadata))
        self._child = Child(
            Load(self.path, self.most, slots, threads=threads, use="embed", mean_pooling=own_pooling == "none")
        )

    def embed(self, inputs: Sequence[Input]) -> NDArray[np.float32]:
        """Embed texts, or ids with everything around them, none of them empty.

        Returns float32 (len(inputs), width), each of length 1. Raises EngineError for one that is too long: nothing is
        cut off.
        """
        texts = [text if isinstance(text, str) else list(map(int, text)) for text in inputs]
        answer = self._child.post("/v1/embeddings", {"input": texts, "encoding_format": "base64"})
        rows = sorted(answer["data"], key=lambda row: row["index"])
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), np.float32) for row in rows])

    def count(self, text: str) -> int:
        """Tokens of a text, without what the tokenizer puts around it."""
        body = {"content": text, "add_special": False, "parse_special": True}
        return len(self._child.post("/tokenize", body)["tokens"])
