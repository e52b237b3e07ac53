"""settle's own tokenizer tables against llama.cpp's vocabulary-only tokenizer, on the same GGUF file and texts.

    python bench/tokenizer_choice.py smollm2.gguf gemma3.gguf --megabytes 4

Each side runs in a process of its own, in turns; the best of the rounds counts. Measured: loading (from the file to the
first text's ids), the peak of memory above what the interpreter and its libraries take, tokens a second one chat at a
time, tokens a second of a corpus (our `encode_documents`; llama.cpp has one call a text), and how many of the texts get
the same ids. Times are of the processor, which a busy machine changes little. The third side is the library
`tokenizers` on the same vocabulary (`tokenizer.fast`). JSON on stdout.
"""

import argparse
import hashlib
import inspect
import json
import os
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

SIDES = ("settle", "llama.cpp", "tokenizers")


def texts(megabytes: float) -> list[str]:
    """Source code and prose of the standard library, in pieces of a few thousand characters, the same every time."""
    files = sorted(Path(inspect.__file__).parent.glob("*.py"))
    source = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    size = int(megabytes * 1e6)
    source = (source * (size // len(source) + 1))[:size]
    return [source[at : at + 3000] for at in range(0, len(source), 3000)]


def settle_side(path: str):
    from settle.data.tokenizer.byte_bpe import closed
    from settle.data.tokenizer.pretrained import PretrainedTokenizer
    from settle.formats.gguf import read_gguf

    def load():
        tokenizer = PretrainedTokenizer(read_gguf(Path(path)).metadata)

        def corpus(documents):
            ids, after = tokenizer.encode_documents(*closed([d.encode() for d in documents]))
            starts = [0, *after[:-1].tolist()]
            return [ids[a : b - 1].tolist() for a, b in zip(starts, after.tolist(), strict=True)]

        return (lambda text: tokenizer.encode(text).tolist()), corpus

    return load


def llama_side(path: str):
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    ffi, lib = get_ffi(), get_lib()
    lib.llama_backend_init()

    def load():
        options = lib.llama_model_default_params()
        options.vocab_only = True
        model = lib.llama_model_load_from_file(os.fsencode(path), options)
        vocabulary = lib.llama_model_get_vocab(model)

        def one(text):
            data = text.encode()
            room = len(data) + 8
            ids = ffi.new("llama_token[]", room)
            number = lib.llama_tokenize(vocabulary, data, len(data), ids, room, False, False)
            return np.frombuffer(ffi.buffer(ids, 4 * number), np.int32).tolist()

        return one, lambda documents: list(map(one, documents))

    return load


def tokenizers_side(path: str):
    from settle.data.tokenizer.fast import fast_tokenizer
    from settle.formats.gguf import read_gguf

    def load():
        tokenizer = fast_tokenizer(read_gguf(Path(path)).metadata)

        def corpus(documents):
            return [e.ids for e in tokenizer.encode_batch_fast(documents, add_special_tokens=False)]

        return (lambda text: tokenizer.encode(text, add_special_tokens=False).ids), corpus

    return load


def child(side: str, path: str, megabytes: float) -> None:
    """Measures one side and prints its figures as JSON."""
    load = {"settle": settle_side, "llama.cpp": llama_side, "tokenizers": tokenizers_side}[side](path)
    documents = texts(megabytes)
    chats = [d[:400] for d in documents[:2000]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    one, corpus = load()
    one("Hello there")
    loaded = time.process_time() - started
    started = time.process_time()
    number = sum(len(one(chat)) for chat in chats)
    single = number / (time.process_time() - started)
    started = time.process_time()
    ids = corpus(documents)
    batch = sum(map(len, ids)) / (time.process_time() - started)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    hashes = [hashlib.sha256(json.dumps(each).encode()).hexdigest()[:12] for each in ids]
    figures = {"load_s": loaded, "single": single, "batch": batch, "mib": grown / 1024, "hashes": hashes}
    print(json.dumps(figures))


def measured(path: str, megabytes: float, rounds: int) -> dict:
    """The figures of all sides for one model."""
    results: dict[str, list[dict]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            command = [sys.executable, __file__, path, "--child", side, "--megabytes", str(megabytes)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[side].append(json.loads(done.stdout.splitlines()[-1]))
    reference = results["llama.cpp"][0]["hashes"]
    best = {}
    for side, figures in results.items():
        equal = sum(a == b for a, b in zip(figures[0]["hashes"], reference, strict=True))
        best[side] = {
            "load_s": round(min(f["load_s"] for f in figures), 3),
            "mib": round(min(f["mib"] for f in figures), 1),
            "single_tokens_per_s": round(max(f["single"] for f in figures)),
            "corpus_tokens_per_s": round(max(f["batch"] for f in figures)),
            "equal_texts": f"{equal} of {len(reference)}",
        }
    return {"model": Path(path).stem} | best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--megabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=SIDES)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.models[0], asked.megabytes)
        return
    versions = {name: version(name) for name in ("llama-cpp-py-sync", "xllamacpp", "tokenizers")}
    models = [measured(path, asked.megabytes, asked.rounds) for path in asked.models]
    print(json.dumps({"versions": versions, "models": models}, indent=1))


if __name__ == "__main__":
    main()
