"""W4A16 in the files of compressed-tensors, which vLLM and transformers load: matrices of 4 bits, all else in 16.

A block of Q4_0 is a scale and 32 whole numbers from -8 to 7, and so is a group of `pack-quantized` int4 of group size
32, so blocks are repacked without any rounding. A scale may be negative in either. That the scales are also exact in
bfloat16 (`ggml.shorten_scales`) lets a folder be in the type of its model.

Format: https://github.com/vllm-project/compressed-tensors. Letters: O outputs and I inputs of a matrix.
"""

import importlib.util
import json
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from settle.base.errors import GateError, UsageError
from settle.base.event_log import Events
from settle.base.events import GateCheck, Warn
from settle.base.files import read_json
from settle.base.python_command import module_command
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.evaluate.gate.behaviour import ADVERSARIAL, BRIEF
from settle.evaluate.gate.export import unproven_place
from settle.evaluate.gate.gate import PROSE
from settle.formats import TensorLike, Weights, to_float32
from settle.formats.gguf.types import GGML
from settle.formats.safetensors import TORCH_NAMES, Computed, hf_tensors, read_safetensors, write_hf_folder
from settle.infer.live_sampling import logprobs
from settle.model.architectures import Architecture
from settle.model.pretrained import Pretrained
from settle.shrink.types.mixes import quantizable

W4A16 = "W4A16"
BLOCKS, GROUP = "Q4_0", GGML["Q4_0"].block
READERS = ("transformers", "compressed_tensors")  # packages that read a folder back, where they are installed
READING_SECONDS = 1800
_FIX = "nothing was written; this is worth a bug report"
_ELSEWHERE = "take a type of llama.cpp, such as Q4_0"


def packable(part: Architecture, file: Weights) -> dict[str, str]:
    """Map the matrices that become 4 bits, by their names in a GGUF file, to the type whose blocks are repacked.

    Those of the layers that llama.cpp quantizes, and whose rows are whole groups. Raises UsageError for a model whose
    blocks cannot be repacked without rounding.
    """
    if any(len(parameters) > 1 for parameters in part.gguf_members().values()):
        raise UsageError(
            f"{part.model_type} keeps several matrices in one tensor, as experts are: not packed as {W4A16}", _ELSEWHERE
        )
    known = quantizable(file)
    kinds: dict[str, str] = {}
    for name, parameters in part.gguf_members().items():
        shape = part.parameters()[parameters[0]]
        if ".layers." not in parameters[0] or name not in known or len(shape) != 2 or shape[1] % GROUP:
            continue
        if part.column_run(parameters[0]) % GROUP:
            raise UsageError(f"a GGUF file of this {part.model_type} orders the inputs of {name} otherwise", _ELSEWHERE)
        rows = np.zeros((shape[0], shape[1] // GROUP), np.uint8)
        if part.from_gguf_tensor(parameters[0], rows).dtype != np.uint8:
            raise UsageError(f"a GGUF file of this {part.model_type} has multipliers in {name}", _ELSEWHERE)
        kinds[name] = BLOCKS
    if not kinds:
        raise UsageError(f"no matrix of this model has rows of whole groups of {GROUP} values", _ELSEWHERE)
    return kinds


def pack(model: Pretrained, path: Path, dtype: str) -> Path:
    """Write the folder of a GGUF file whose matrices are in Q4_0. dtype: of its scales and of all else."""
    dense = hf_tensors(model.part, model.lazy_weights())
    tensors: dict[str, TensorLike] = {}
    for name, parameters in _members(model).items():
        shape, module = dense[name].shape, name.removesuffix(".weight")
        if not _is_packed(model, parameters):
            tensors[name] = dense[name]
            continue
        codes, scales = (shape[0], shape[1] // 8), (shape[0], shape[1] // GROUP)
        tensors[f"{module}.weight_packed"] = Computed(codes, partial(_packed, model, parameters), "I32")
        tensors[f"{module}.weight_scale"] = Computed(scales, partial(_scales, model, parameters))
        tensors[f"{module}.weight_shape"] = Computed((2,), partial(np.array, shape, "<i8"), "I64")
    return write_hf_folder(_config(model, dtype), tensors, model.tokenizer, path, dtype, {"name": model.name})


def _members(model: Pretrained) -> dict[str, list[str]]:
    """Map each tensor of Hugging Face's files to the parameters whose rows it holds."""
    members: dict[str, list[str]] = {}
    for parameter, name in model.part.hf_names().items():
        members.setdefault(name, []).append(parameter)
    return members


def _is_packed(model: Pretrained, parameters: Sequence[str]) -> bool:
    return model.stored[parameters[0]].tensor.dtype == BLOCKS and ".layers." in parameters[0]


def _config(model: Pretrained, dtype: str) -> dict[str, object]:
    """Return config.json; every matrix that is not packed is named, and the head, which is a linear even where tied."""
    dense = [name for name, parameters in _members(model).items() if not _is_packed(model, parameters)]
    modules = {name.removesuffix(".weight") for name in dense if name.endswith(".weight") and "norm" not in name}
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "dynamic": False,
    }  # fmt: skip
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": sorted(modules | {"lm_head"}),
    }
    return model.part.to_hf_config() | {"dtype": TORCH_NAMES[dtype], "quantization_config": quantization}


def _blocks(model: Pretrained, parameters: Sequence[str]) -> np.ndarray:
    """Blocks of the rows of all the parameters: uint8 (O, I / 32, 18)."""
    rows = np.concatenate([model.blocks(name).numpy() for name in parameters])
    return rows.reshape(len(rows), -1, GGML[BLOCKS].block_bytes)


def _scales(model: Pretrained, parameters: Sequence[str]) -> np.ndarray:
    return _blocks(model, parameters)[..., :2].copy().view("<f2")[..., 0].astype(np.float32)


def _packed(model: Pretrained, parameters: Sequence[str]) -> np.ndarray:
    """Codes of 4 bits, eight to a word, the first in its lowest bits: int32 (O, I / 8)."""
    codes = _blocks(model, parameters)[..., 2:]
    in_order = np.concatenate([codes & 15, codes >> 4], -1)
    return np.ascontiguousarray(in_order[..., 0::2] | in_order[..., 1::2] << 4).reshape(len(codes), -1).view("<i4")


def packed_through_gate(model: Pretrained, path: Path, dtype: str, texts: Sequence[str], events: Events) -> Path:
    """Write the folder, which becomes `path` only if what is read back is the model of the GGUF file.

    model: a file that passed the gate itself. Raises GateError with the first difference.
    """
    with unproven_place(path) as unproven:
        pack(model, unproven, dtype)
        number = require_equal(unproven, model, dtype)
        detail = f"{number} matrices of 4 bits equal the file's, bit for bit"
        if all(map(importlib.util.find_spec, READERS)):
            kl = _kl_in_transformers(unproven, model, dtype, [*texts, *PROSE])
            detail += f"; KL in transformers {kl:.1e} nats per token"
        else:
            events.emit(Warn(text=f"{W4A16}: only settle read the folder back; `pip install {' '.join(READERS)}`"))
        events.emit(GateCheck(check=W4A16, passed=True, detail=detail))
    return path


def require_equal(folder: Path, model: Pretrained, dtype: str) -> int:
    """Compare a folder, as it is read back, with its file: numbers, shapes, config, tokenizer and template.

    Returns how many matrices are packed. Raises GateError, and FormatError for a file that is not sound.
    """
    tensors, number = read_safetensors(folder).tensors, 0
    for name, tensor in hf_tensors(model.part, model.lazy_weights()).items():
        kept = torch.from_numpy(to_float32(tensor))
        if (stored := tensors.get(name)) is None:
            raise GateError(f"there is no {name} in {folder.name}", _FIX)
        number += stored.dtype == BLOCKS
        if stored.dtype != BLOCKS:
            kept = kept.to(getattr(torch, TORCH_NAMES[stored.dtype.lower()])).float()
        if stored.shape != tuple(kept.shape) or not torch.equal(torch.from_numpy(stored.load()), kept):
            raise GateError(f"{folder.name} does not hold the numbers of {model.name} in {name}", _FIX)
    if read_json(folder / "config.json") != json.loads(json.dumps(_config(model, dtype))):
        raise GateError(f"config.json of {folder.name} is not that of {model.name}", _FIX)
    tokenizer = PretrainedTokenizer.from_folder(folder)
    texts = [text for text in ADVERSARIAL if list(tokenizer.encode(text)) != list(model.tokenizer.encode(text))]
    if texts or tokenizer.chat_template != model.chat_template:
        raise GateError(f"the tokenizer of {folder.name} is not that of {model.name}: {texts[:1]}", _FIX)
    return number


def _kl_in_transformers(folder: Path, model: Pretrained, dtype: str, texts: Sequence[str]) -> float:
    """KL of the folder in transformers to the file, nats per token. Raises GateError above what rounding explains."""
    pieces = [model.tokenizer.encode(text).tolist()[: BRIEF.window] for text in texts]
    windows = sorted(pieces, key=len)[-BRIEF.num_windows :]
    live = model.load()
    with tempfile.TemporaryDirectory(prefix="settle-w4a16-") as scratch:
        target = Path(scratch) / "logprobs.npz"
        request = json.dumps({"folder": str(folder), "windows": windows, "target": str(target)})
        command = module_command("settle.shrink.types.w4a16_child")
        done = subprocess.run(
            command, input=request, capture_output=True, encoding="utf-8", timeout=READING_SECONDS, check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
            raise GateError(f"transformers does not load {folder.name}: {lines[-1]}", _FIX)
        with np.load(target) as theirs:
            both = [(logprobs(live, ids, range(len(ids))).numpy(), theirs[f"arr_{i}"]) for i, ids in enumerate(windows)]
    kl = float(np.mean(np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in both])))
    row = GGML[dtype.upper()]
    bars = row.large_bars if model.part.vocab_size > BRIEF.most_likely else row.bars
    if bars is None or not kl <= bars.kl:
        raise GateError(f"{folder.name} does not answer in transformers as the file does: KL {kl:.2g}", _FIX)
    return kl
