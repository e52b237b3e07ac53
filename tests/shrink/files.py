"""GGUF files of any architecture and shape with random weights: enough for quantizing, too little for running.

llama.cpp's quantizer asks for the metadata and looks at each tensor alone, so a matrix of two rows will do.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter


def make_gguf(
    path: Path,
    architecture: str = "llama",
    layers: int = 2,
    heads: int = 4,
    shared: int = 2,
    width: int = 256,
    inner: int = 512,
    experts: int = 0,
    tied: bool = False,
    fused: bool = False,
    rows: int = 2,
    dtype: str = "F16",
    extra: dict | None = None,
) -> Path:
    """shared: key/value heads; fused: one matrix for queries, keys and values; rows: of each matrix;
    dtype: of the matrices; extra: more tensors by name, their shape or their values."""
    writer = GGUFWriter(path, architecture)
    writer.add_name("synthetic")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_file_type(1)
    writer.add_head_count_kv(shared)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_quantization_version(2)
    writer.add_bool("settle.flag", True)
    writer.add_float64("settle.loss", 1.5)
    writer.add_array("settle.numbers", [1, 2, 3])
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(inner)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(rows)])
    writer.add_token_types([1] * rows)
    random = np.random.default_rng(0)
    shapes = _shapes(layers, width, inner, experts, tied, fused, rows)
    for name, shape in (shapes | (extra or {})).items():
        _add(writer, name, shape, dtype, random)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer, name, shape, dtype, random) -> None:
    given = isinstance(shape, np.ndarray)
    values = shape if given else random.standard_normal(shape, np.float32) * random.random(dtype=np.float32)
    if values.ndim < 2 or dtype == "F32":
        writer.add_tensor(name, values)
    elif dtype == "BF16":
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        writer.add_tensor(name, bits, raw_shape=values.shape, raw_dtype=GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, values.astype(np.float16))


def _shapes(layers, width, inner, experts, tied, fused, rows) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (rows, width), "output_norm.weight": (width,)}
    if not tied:
        shapes["output.weight"] = (rows, width)
    for layer in range(layers):
        block = {"attn_norm.weight": (width,), "ffn_norm.weight": (width,), "attn_output.weight": (rows, width)}
        if fused:
            block["attn_qkv.weight"] = (rows, width)
        else:
            block |= {f"attn_{n}.weight": (rows, width) for n in "qkv"} | {"attn_v.bias": (rows,)}
        if experts:
            block["ffn_gate_inp.weight"] = (experts, width)
            block |= {f"ffn_{n}_exps.weight": (experts, rows, width) for n in ("gate", "up")}
            block["ffn_down_exps.weight"] = (experts, rows, inner)
        else:
            block |= {"ffn_gate.weight": (rows, width), "ffn_up.weight": (rows, width)}
            block["ffn_down.weight"] = (rows, inner)
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return shapes
