"""What tuning an encoder makes, as files, and the check that they are what was trained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from settle.base.errors import GateError
from settle.base.run import Run
from settle.data.batches import Batch
from settle.evaluate.pair_scores import pair_scores
from settle.formats import Weights, write_array
from settle.formats.gguf import read_gguf
from settle.formats.gguf.layout import Entry, layout
from settle.formats.safetensors import write_safetensors
from settle.model.encoder import Encoder, encoder_of_gguf, gguf_names
from settle.model.reranker import Reranker, file_names
from settle.model.source import Source

APART = 0.02  # of a logit or a cosine after rounding to half precision, at most
RERANKER = "reranker.safetensors"


def export_reranker(
    model: Reranker, base: Source, run: Run, batches: Sequence[Batch]
) -> tuple[dict[str, str], dict[str, object]]:
    """Write the reranker's own weights in f16; return the files by kind, and the gate's report."""
    path, names = run.out / RERANKER, file_names(len(model.encoder.blocks))
    weights = {names.get(n, n): weight.detach().numpy().astype(np.float16) for n, weight in model.state_dict().items()}
    about = {"format": "settle-reranker", "encoder": base.name, "encoder_sha256": base.sha256}
    write_safetensors(path, weights, "f16", about)
    read = Reranker(model.encoder).eval()
    stored = load_file(path)
    read.load_state_dict({n: torch.from_numpy(stored[names.get(n, n)].astype(np.float32)) for n in read.state_dict()})
    return {"reranker": str(path)}, _gate(pair_scores(model, batches), pair_scores(read, batches), path)


def export_encoder(
    model: Encoder, base: Weights, run: Run, batches: Sequence[Batch]
) -> tuple[dict[str, str], dict[str, object]]:
    """Write the base's file with the trained weights, matrices in f16; return the files and the gate's report."""
    path, names = run.out / f"{run.name}.gguf", gguf_names(len(model.blocks))
    own = dict(model.named_parameters())
    arrays = {name: own[names[name]].detach().numpy() for name in base.tensors if name in names}
    stored = {
        n: a.astype(np.float16 if a.ndim == 2 and n.startswith(("blk.", "token_embd.")) else np.float32)
        for n, a in arrays.items()
    }
    entries = [Entry(n, a.shape, "F16" if a.dtype == np.float16 else "F32", a.nbytes) for n, a in stored.items()]
    planned = layout(base, entries, {"general.name": run.name})
    with path.open("wb") as out:
        out.write(planned.header)
        for entry in entries:
            write_array(out, stored[entry.name])
            out.write(bytes(planned.padding(entry.num_bytes)))
    read = encoder_of_gguf(read_gguf(path)).eval()
    return {"gguf": str(path)}, _gate(pair_scores(model, batches), pair_scores(read, batches), path)


def _gate(trained: np.ndarray, read: np.ndarray, path: Path) -> dict[str, object]:
    apart = float(np.abs(trained - read).max())
    if not apart <= APART:
        path.unlink()
        raise GateError(
            f"{path.name} scores pairs {apart:.3f} away from the trained model", "report it with this recipe"
        )
    return {"passed": True, "largest_difference": apart, "bar": APART}
