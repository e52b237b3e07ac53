"""What a weight of each type costs llama.cpp on a processor, beside Q8_0: written token by token, and of a prompt.

    python bench/type_rates.py TOKENIZER.gguf [--folder DIR] [--rounds 6] [--types Q4_K …]

Two made models of a type differ in the width of their inner layers alone, so the difference of their times is that of
so many weights. Times are the child's own time on a processor with one thread (Linux), and each type takes turns with
Q8_0, so that other work on the machine weighs on both alike. Prints lines for settle/plan/fit/weight_types.py.
"""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from settle.formats.gguf.types import GGML
from settle.infer.child_process import Child, Load
from settle.shrink.types import ggml

LAYERS, WIDTH, HEADS, INNER = 4, 1024, 16, (1024, 5120)
PROMPT, WRITTEN = 48, 10  # tokens
WEIGHTS = LAYERS * 3 * WIDTH * (INNER[1] - INNER[0])  # by which the two models differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("type_rates"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--types", nargs="*", default=list(GGML))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    source = GGUFReader(asked.tokenizer)
    with contextlib.ExitStack() as stack:
        of_q8 = [stack.enter_context(_child(asked, source, "Q8_0", inner)) for inner in INNER]
        for kind in asked.types:
            with contextlib.ExitStack() as own:
                children = [*of_q8, *(own.enter_context(_child(asked, source, kind, inner)) for inner in INNER)]
                bursts = np.array(
                    [[_burst(child) for child in children] for _ in range(asked.rounds)]
                )  # (rounds, 4, 2)
            usual = np.median(bursts, 0)
            q8, written = usual[1] - usual[0], usual[3] - usual[2]
            per_weight = " ".join(f"{1e12 * s / WEIGHTS:.1f}" for s in (*q8, *written))
            print(
                f"{kind.lower()} = [{written[0] / q8[0]:.2f}, {written[1] / q8[1]:.2f}]  # {per_weight} ps", flush=True
            )


@contextlib.contextmanager
def _child(asked: argparse.Namespace, source: GGUFReader, kind: str, inner: int) -> Iterator[Child]:
    path = asked.folder / f"{kind}-{inner}.gguf"
    _write(path, source, kind, inner)
    child = Child(Load(path, PROMPT + WRITTEN + 16, threads=1))
    try:
        child.start()
        yield child
    finally:
        child.close()
        path.unlink()


def _burst(child: Child) -> tuple[float, float]:
    """Processor seconds of a token written, and of one of a prompt."""
    ids = list(range(10, 10 + PROMPT))
    before = _spent(child)
    for prompt, number in ((ids[:2], WRITTEN + 1), (ids, 1)):
        body = {"prompt": prompt, "n_predict": number, "ignore_eos": True, "cache_prompt": False, "temperature": 0.0}
        child.post("/completion", body)
        before.append(_spent(child)[0])
    start, written, read = before
    return (written - start) / (WRITTEN + 2), (read - written) / PROMPT


def _spent(child: Child) -> list[float]:
    """Seconds that all threads of the child were on a processor."""
    tasks = Path(f"/proc/{child.pid}/task").glob("*/schedstat")
    return [sum(int(task.read_text().split()[0]) for task in tasks) / 1e9]


def _write(path: Path, source: GGUFReader, kind: str, inner: int) -> None:
    """Write a model of LAYERS layers whose matrices are of a type, with the tokenizer of `source`."""
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
