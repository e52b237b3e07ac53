"""What a weight of each type costs llama.cpp on a processor, in matrices: written token by token, and of a prompt.

    python bench/type_rates.py TOKENIZER.gguf [--folder DIR] [--threads 1] [--rounds 12] [--types Q8_0 Q4_K …]

Two made models of a type differ in the width of their inner layers alone, so the difference of their times is that of
so many weights. Of many short rounds the fastest counts, in turns of all types. Prints picoseconds a weight, and the
same beside Q8_0, for settle/plan/fit/type_costs.toml.
"""

import argparse
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from settle.formats.gguf.types import GGML
from settle.infer.child_process import Child, Load
from settle.shrink.types import ggml

LAYERS, WIDTH, HEADS, INNER = 4, 1024, 16, (1024, 5120)
PROMPT, WRITTEN = 64, 12
WEIGHTS = LAYERS * 3 * WIDTH * (INNER[1] - INNER[0])  # by which the two models differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("type_rates"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--types", nargs="*", default=list(GGML))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    source = GGUFReader(asked.tokenizer)
    rows = {}
    for kind in asked.types:
        times = []
        for inner in INNER:
            path = asked.folder / f"{kind}-{inner}.gguf"
            _write(path, source, kind, inner)
            times.append(_fastest(path, asked.threads, asked.rounds))
            path.unlink()
        small, large = times
        rows[kind] = [1e12 * (b - a) / WEIGHTS for a, b in zip(small, large, strict=True)]
        print(f"{kind:8s} written {rows[kind][0]:7.1f} ps, prompt {rows[kind][1]:7.1f} ps a weight", flush=True)
    if "Q8_0" in rows:
        for kind, (written, prompt) in rows.items():
            print(f"{kind.lower()} = [{written / rows['Q8_0'][0]:.2f}, {prompt / rows['Q8_0'][1]:.2f}]")


def _fastest(path: Path, threads: int, rounds: int) -> tuple[float, float]:
    """Seconds of a token written, and of one of a prompt."""
    child = Child(Load(path, PROMPT + WRITTEN + 16, threads=threads))
    try:
        child.start()
        ids = list(range(100, 100 + PROMPT))
        body = {"prompt": ids, "n_predict": WRITTEN, "ignore_eos": True, "cache_prompt": False, "temperature": 0.0}
        timings = [child.post("/completion", body)["timings"] for _ in range(rounds)]
    finally:
        child.close()
    written = max(float(t["predicted_per_second"]) for t in timings)
    return 1 / written, 1 / max(float(t["prompt_per_second"]) for t in timings)


def _write(path: Path, source: GGUFReader, kind: str, inner: int) -> None:
    """A model of LAYERS layers whose matrices are of a type, with the tokenizer of `source`."""
    writer = GGUFWriter(path, "llama")
    for field in source.fields.values():
        if field.name.startswith("tokenizer."):
            sub = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    head = WIDTH // HEADS
    sizes = {"block_count": LAYERS, "embedding_length": WIDTH, "feed_forward_length": inner, "context_length": 512,
             "attention.head_count": HEADS, "attention.head_count_kv": HEADS, "rope.dimension_count": head}  # fmt: skip
    for key, value in sizes.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    vocab = len(source.fields["tokenizer.ggml.tokens"].data)
    values = (np.random.default_rng(0).standard_normal((1, inner + WIDTH)) * 0.02).astype(np.float32)

    def matrix(name: str, out: int, row: int, kind: str = kind) -> None:
        one = ggml.quantize(values[:, :row].copy(), kind, np.ones(row, np.float32))
        writer.add_tensor(name, np.repeat(one, out, 0), raw_dtype=GGMLQuantizationType[kind])

    matrix("token_embd.weight", vocab, WIDTH, "Q8_0")
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{at}{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{at}{name}.weight", WIDTH, WIDTH)
        for name, out, row in (("gate", inner, WIDTH), ("up", inner, WIDTH), ("down", WIDTH, inner)):
            matrix(f"{at}ffn_{name}.weight", out, row)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


if __name__ == "__main__":
    main()
