"""Which examples belong together: near duplicates, and answers to one prompt, are no independent samples."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from settle.data.document_buffer import BufferWriter, DocumentBuffer
from settle.data.layouts import Example
from settle.data.split import families_of, row_clusters
from settle.data.workspace import workspace


def row_families(examples: Sequence[Example]) -> list[int]:
    """The same number for examples of one family: texts that are kin, or answers to one prompt."""
    prompts = np.array([prompt_hash(words(example)[0]) for example in examples], np.uint64)
    with buffered(examples) as texts:
        families: list[int] = families_of(row_clusters(texts, prompts), np.ones(len(examples), bool)).tolist()
        return families


@contextlib.contextmanager
def buffered(examples: Sequence[Example]) -> Iterator[DocumentBuffer]:
    """The texts of examples, prompt and answer, in a buffer that is there for so long."""
    with workspace() as work:
        writer = BufferWriter(work / "texts")
        try:
            for number, example in enumerate(examples):
                writer.append("\n\n".join(filter(None, words(example))), 0, number)
        finally:
            texts = writer.close()
        yield texts


def words(example: Example) -> tuple[str, str]:
    """The prompt and the answer of an example, without the system prompt that all may share."""
    turns = [message["content"] for message in example.messages if message["role"] != "system"]
    if example.kind == "preference":
        return "\n\n".join(turns), "\n\n".join(m["content"] for m in (*example.chosen, *example.rejected))
    if example.kind == "text":
        return example.text, ""
    return turns[0], "\n\n".join(turns[1:])


def prompt_hash(prompt: str) -> int:
    """64 bits that stand for a prompt."""
    return int.from_bytes(hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=8).digest())
