"""The one converter of a model in Hugging Face's layout to GGUF, which llama.cpp reads.

`python -m settle.library.convert NAME` converts a model of the store in a process of its own, which loads torch.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.formats.gguf import export_gguf
from settle.library.catalogue import sampling_keys
from settle.library.reference import ModelRef
from settle.library.store import StoredModel, find_model
from settle.model.pretrained import Pretrained
from settle.model.source import Source

Dtype = Literal["f32", "f16", "bf16"]


def to_gguf(model: Pretrained, path: Path, dtype: Dtype, tokenizer: PretrainedTokenizer | None = None) -> Path:
    """Write the model's weights as one GGUF file, reading them piece by piece. tokenizer: instead of its own."""
    return export_gguf(
        model.part,
        model.lazy_weights(),
        tokenizer or model.tokenizer,
        path,
        dtype,
        {"name": model.name},
        sampling_keys(model.source, model.metadata),
    )


def convert_stored(stored: StoredModel) -> Path:
    """Return the GGUF file of a model in the store; it is made once, and kept there."""
    if not stored.gguf.exists():
        to_gguf(Pretrained.open(stored.source), stored.gguf, "bf16")
    return stored.gguf


@contextlib.contextmanager
def as_gguf(model: Pretrained, folder: Path, tokenizer: PretrainedTokenizer | None = None) -> Iterator[ModelRef]:
    """Yield the model as llama.cpp serves it.

    One in Hugging Face's layout is a GGUF file in `folder` for as long as this lasts.
    """
    if model.source.kind == "gguf":
        yield ModelRef(model.name, "model", model.source)
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".base-") as fresh:
        path = to_gguf(model, Path(fresh) / "base.gguf", "f16", tokenizer)
        yield ModelRef(model.name, "model", Source(path, "gguf", model.name))


def unquantized_type(model: Pretrained) -> Dtype:
    """Return the GGUF type that keeps the weights of a model in Hugging Face's layout best: BF16 where most are."""
    return "bf16" if max(model.kinds, key=model.kinds.__getitem__) == "BF16" else "f16"


if __name__ == "__main__":
    named = find_model(sys.argv[1])
    if named is not None:
        convert_stored(named)
