"""Tokenizing and packing: settle's encoder and token store against `tokenizers`' encode_batch and numpy, paired.

    python bench/tokenizing.py [megabytes]

Both read the same documents and write the same ids (checked) to a file, in turns, several rounds; memory is the peak of
a child process that prepares a corpus, and one ten times as large.
"""

import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers import pre_tokenizers

from settle.base.event_log import Events
from settle.data.corpus import Ledger, find_files
from settle.data.document_buffer import BufferWriter, DocumentBuffer
from settle.data.prepare import _tokenize, prepare
from settle.data.settings import DataSettings
from settle.data.split import HELD_OUT, TRAIN
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer, vocabulary_size

ROUNDS = 5


def documents(megabytes: float, folder: Path) -> Iterator[str]:
    """Yield the standard library over and over, its lines in a new order each time so that no file is met twice."""
    files = find_files(["stdlib"], folder, Ledger())
    texts = [f.path.read_text("utf-8", "replace") for f in files]
    rng, missing = random.Random(0), megabytes * 1e6
    while True:
        for text in texts:
            yield text
            missing -= len(text)
            if missing <= 0:
                return
        texts = ["\n".join(rng.sample(lines, len(lines))) for lines in (t.split("\n") for t in texts)]


def ours(spool: DocumentBuffer, tokenizer: ByteBpeTokenizer, folder: Path) -> tuple[float, np.ndarray]:
    fresh = ByteBpeTokenizer(tokenizer.path)  # with nothing remembered
    sides = np.append(np.full(len(spool) - 1, TRAIN, np.int8), np.int8(HELD_OUT))
    started = time.perf_counter()
    train, held_out = _tokenize(spool, sides, fresh, folder, Events())
    return time.perf_counter() - started, np.append(train.tokens[1:], held_out.tokens[1:])


def theirs(texts: list[str], engine: Engine, eos: int, path: Path) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    with path.open("wb") as f:
        for first in range(0, len(texts), 256):
            for encoding in engine.encode_batch(texts[first : first + 256], add_special_tokens=False):
                np.array([*encoding.ids, eos], np.uint16).tofile(f)
    return time.perf_counter() - started, np.fromfile(path, np.uint16)


def speed(megabytes: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = list(documents(megabytes, folder))
        writer = BufferWriter(folder / "spool")
        for row, text in enumerate(texts):
            writer.append(text, 0, row)
        spool = writer.close()
        size = int(spool.sizes.sum())
        tokenizer = ByteBpeTokenizer.train(texts[:200], vocabulary_size(size), folder / "tokenizer")
        # the peer as people use it: its own fast pattern for words, not the written-out classes
        engine = Engine.from_file(str(tokenizer.path / "tokenizer.json"))
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pairs = []
        for _ in range(ROUNDS):
            a, ids = ours(spool, tokenizer, folder / "store")
            b, expected = theirs(texts, engine, tokenizer.eos_id, folder / "theirs.bin")
            assert np.array_equal(ids, expected), "the ids differ"
            pairs.append((a, b))
        return {
            "megabytes": size / 1e6,
            "ours_mb_per_s": size / 1e6 / statistics.median(a for a, _ in pairs),
            "theirs_mb_per_s": size / 1e6 / statistics.median(b for _, b in pairs),
            "ratio_median": statistics.median(b / a for a, b in pairs),
            "ratio_min": min(b / a for a, b in pairs),
        }


def peak_memory(megabytes: float) -> float:
    """Megabytes at the peak of preparing a corpus of that size, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        with (Path(name) / "corpus.jsonl").open("w") as f:
            f.writelines(json.dumps({"text": t}) + "\n" for t in documents(megabytes, Path(name)))
        command = [sys.executable, __file__, "--child", str(Path(name) / "corpus.jsonl")]
        own = os.environ | {"SETTLE_HOME": name}
        done = subprocess.run(command, env=own, stdout=subprocess.PIPE, text=True, check=True)
        shutil.rmtree(Path(name) / "tokens")
        return float(done.stdout)


def child(path: str) -> None:
    prepare([path], DataSettings(vocab_size=4096), Events())
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def main(megabytes: float) -> None:
    # first, while this process is small: a child's peak counts what its parent had when it began
    result = {"peak_mb": peak_memory(megabytes), "peak_mb_ten_times": peak_memory(10 * megabytes)}
    result |= speed(megabytes)
    print(json.dumps({k: round(v, 2) for k, v in result.items()}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2])
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 40.0)
