"""What a vocabulary cut brings: size of the file, loss on held-out text, speed in llama.cpp.

    python bench/vocabulary.py gemma3-270m.gguf --text alpaca.json gsm8k.jsonl shakespeare.txt
    python bench/vocabulary.py gemma3-270m.gguf --code

The file is cut as it is, no weight is rounded again. Nine tenths of the documents say which tokens are kept; the loss
is measured on some of the others, in bits per byte, since both models write them in other tokens. --code takes the
standard library's source.
"""

import argparse
import inspect
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from settle.evaluate.gate.gate import Reference, run_gate
from settle.infer.engine import Engine
from settle.model.pretrained import Pretrained
from settle.shrink.pruners.vocabulary import Vocabulary

LONGEST = 1200  # characters of a held-out document that are read
PROMPTS = {"text": "The old man went down to the river and", "code": "def read_lines(path, encoding):\n    "}


def documents(paths: Sequence[Path]) -> list[str]:
    """Paragraphs of .txt, records of .json and .jsonl with all their texts."""
    found: list[str] = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            found += ["\n".join(_strings(record)) for record in json.loads(text)]
        elif path.suffix == ".jsonl":
            found += ["\n".join(_strings(json.loads(line))) for line in text.splitlines()]
        else:
            found += text.split("\n\n")
    return [document for document in found if document.strip()]


def source_code(most: int) -> list[str]:
    """Modules of the standard library, tests aside."""
    folder = Path(inspect.getfile(inspect)).parent
    files = sorted(p for p in folder.rglob("*.py") if not {"test", "tests", "site-packages", "idlelib"} & set(p.parts))
    found, size = [], 0
    for path in random.Random(0).sample(files, len(files)):
        text = path.read_text(encoding="utf-8", errors="replace")
        found.append(text)
        size += len(text)
        if size > most:
            break
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(inner)


@torch.no_grad()
def bits_per_byte(path: Path, texts: Sequence[str]) -> dict[str, float]:
    """Of the model in a file on texts, each opened as the model expects it."""
    base = Pretrained.open(path)
    model, bits, size, tokens = base.load(), 0.0, 0, 0
    for text in texts:
        ids = [base.tokenizer.bos_id if base.tokenizer.add_bos else base.tokenizer.eos_id]
        ids += base.tokenizer.encode(text).tolist()
        inputs, wanted = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
        hidden = model(inputs, torch.tensor([0, len(inputs)], dtype=torch.int32))
        for first in range(0, len(inputs), 128):  # rows of a large vocabulary, a few at a time
            rows = model.logits(hidden[first : first + 128])
            nats = torch.nn.functional.cross_entropy(rows, wanted[first : first + 128], reduction="sum")
            bits += float(nats) / math.log(2)
        size += len(text.encode())
        tokens += len(inputs)
    return {"bits_per_byte": bits / size, "tokens": tokens, "bytes": size}


def generation(
    paths: Sequence[Path], prompt: str, tokens: int, repeats: int, threads: int | None
) -> list[dict[str, Any]]:
    """Medians of both files, asked in turns; and whether the answer is the same."""
    with Engine(paths[0], 2048, threads) as first, Engine(paths[1], 2048, threads) as second:
        speeds: list[list[float]] = [[], []]
        answers = ["", ""]
        for _ in range(repeats):
            for which, engine in enumerate((first, second)):
                ids = engine.plain(prompt)
                start = time.perf_counter()
                answer = engine.greedy(ids, tokens)
                speeds[which].append(len(answer) / (time.perf_counter() - start))
                answers[which] = engine.detokenize(answer)
    same = answers[0] == answers[1]
    return [{"tokens_per_second": round(statistics.median(s), 2), "same_answer": same} for s in speeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--code", action="store_true")
    parser.add_argument("--most", type=int, default=8_000_000, help="characters of source code")
    parser.add_argument("--tokens", type=int, default=None, help="tokens kept at most")
    parser.add_argument("--documents", type=int, default=60, help="held-out documents that are read")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--threads", type=int, help="of torch and llama.cpp; 1 on a machine that others use too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    say = partial(print, file=sys.stderr, flush=True)
    texts = source_code(args.most) if args.code else documents(args.text)
    random.Random(0).shuffle(texts)
    held = texts[: max(1, len(texts) // 10)]
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder) / "cut.gguf"
        start = time.perf_counter()
        kept = Vocabulary(tokens=args.tokens).cut_file(args.model, cut, texts[len(held) :])
        seconds = time.perf_counter() - start
        paths = (args.model, cut)
        sizes = [path.stat().st_size for path in paths]
        say(kept.report.to_json(), sizes, seconds)
        model = Pretrained.open(cut)
        gate = run_gate(Reference(model.load(), model.tokenizer, held), cut, "blocks")
        say(gate)
        read = [text[:LONGEST] for text in held[: args.documents]]
        loss = [bits_per_byte(path, read) for path in paths]
        say(loss)
        speed = generation(paths, PROMPTS["code" if args.code else "text"], args.generate, args.repeats, args.threads)
    print(
        json.dumps(
            {
                "model": args.model.name,
                "text": "code" if args.code else [p.name for p in args.text],
                "kept": kept.report.to_json(),
                "seconds": round(seconds, 1),
                "bytes": sizes,
                "smaller": round(1 - sizes[1] / sizes[0], 4),
                "loss": loss,
                "loss_change": round(loss[1]["bits_per_byte"] / loss[0]["bits_per_byte"] - 1, 5),
                "generation": speed,
                "faster": round(speed[1]["tokens_per_second"] / speed[0]["tokens_per_second"], 3),
                "gate": {key: gate[key] for key in ("passed", "texts_equal", "kl", "first_difference")},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
