"""A tiny model that is really trained, once for all workers, on two modules of the standard library."""

import functools
import inspect
import json
import tempfile
from argparse import _ActionsContainer
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.model.adapters import PREFIX
from settle.model.adapters.lora import LoRA
from settle.model.architectures.llama import Llama
from settle.model.decoder import Decoder
from settle.model.load_adapter import TrainedAdapter
from tests import once


@dataclass(frozen=True)
class Trained:
    part: Llama
    model: Decoder
    tokenizer: ByteBpeTokenizer
    held_out: list[str]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters()}


@functools.cache
def trained() -> Trained:
    """Grouped queries, an untied head, a few hundred steps: its distributions are far from flat."""
    source = inspect.getsource(inspect.getmodule(_ActionsContainer))
    held_out = [inspect.getsource(inspect.getmodule(json.JSONDecoder)), "def f(x):\n    return self.x[1:]\n" * 3]
    folder = tempfile.TemporaryDirectory()
    tokenizer = ByteBpeTokenizer.train([source], 512, Path(folder.name))
    tokenizer.folder = folder  # removed with it
    part = Llama(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=tokenizer.vocab_size, max_position_embeddings=512,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    model = part.build(seed=0)
    torch.set_num_threads(1)  # the suite shares its cores

    def train(path: Path) -> None:
        _train(model, torch.from_numpy(tokenizer.encode(source).astype("int64")))
        save_file(model.state_dict(), path)

    model.load_state_dict(load_file(once.made("trained.safetensors", train)))
    return Trained(part, model, tokenizer, held_out)


def _train(model: Decoder, ids: torch.Tensor) -> None:
    """Learn ids, (T,), by plain AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    random = torch.Generator().manual_seed(0)
    length, rows = 96, 6
    bounds = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32)
    for _ in range(120):
        starts = torch.randint(0, len(ids) - length - 1, (rows,), generator=random)
        places = (starts[:, None] + torch.arange(length)).flatten()
        hidden = model(ids[places], bounds)
        loss = torch.nn.functional.cross_entropy(hidden @ model.head.T, ids[places + 1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 4.0


def adapter(part: Llama, rank: int = 4, seed: int = 0, strength: float = 0.5) -> TrainedAdapter:
    """A LoRA on every linear whose B is not zero: `strength` is about the size of its change to that of the weights."""
    random = torch.Generator().manual_seed(seed)
    shapes = {name: p.shape for name, p in part.build(0).named_parameters() if name.endswith("_proj.weight")}
    state = {}
    for name, (outputs, inputs) in shapes.items():
        module = PREFIX + name.removesuffix(".weight")
        down, up = torch.randn(rank, inputs, generator=random), torch.randn(outputs, rank, generator=random)
        state[f"{module}.lora_A.weight"] = (down / inputs**0.5).numpy()
        state[f"{module}.lora_B.weight"] = (up * strength / rank**0.5).numpy()
    return TrainedAdapter(LoRA(rank=rank, alpha=float(rank)), state, base="tiny", base_sha256="ab" * 32)


def merged(weights: dict[str, torch.Tensor], adapter: TrainedAdapter) -> dict[str, torch.Tensor]:
    """Weights with an adapter added to them."""
    out = dict(weights)
    assert adapter.lora is not None
    for module, pair in adapter.lora.pairs.items():
        down, up = map(torch.from_numpy, pair)
        out[f"{module}.weight"] = out[f"{module}.weight"] + adapter.lora.alpha / len(down) * up @ down
    return out
