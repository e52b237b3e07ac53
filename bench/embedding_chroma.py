"""Chroma's side of `embedding.py`, run by a Python that has chromadb: does what it is told, line by line."""

import json
import sys
import time
from pathlib import Path

import chromadb
import numpy as np
from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2


def main(work: Path) -> None:
    passages = json.loads((work / "passages.json").read_text())
    ids = [str(number) for number in range(len(passages))]
    client = chromadb.PersistentClient(str(work / "chroma"), chromadb.Settings(anonymized_telemetry=False))
    embed = ONNXMiniLM_L6_V2()
    for number, line in enumerate(sys.stdin):
        began = time.perf_counter()
        if line.strip() == "embedding":
            vectors = embed(passages)
        else:
            collection = client.create_collection(f"round-{number}")
            collection.add(ids=ids, documents=passages)
        print(time.perf_counter() - began, flush=True)
    np.save(work / "chroma.npy", np.stack(vectors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
