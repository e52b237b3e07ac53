"""Trains the judge that `settle ask` ships with, on a machine that has minutes for it.

    python bench/judge_pairs.py FOLDER... --faq FAQ.json --out pairs.jsonl
    python bench/judge.py pairs.jsonl --dev faq-debian,faq-git --out answer_judge.safetensors

`settle tune minilm pairs.jsonl --objective rank` trains all of a reranker and reads every passage in every step. Here
the encoder reads each text once, the likeness of a question's tokens to each passage's is computed once, and what reads
these figures is trained: the attention to the passage stays at zero. Beside the pairs' own negatives each question has
the passages that come nearest to it by cosine. The loss is the cross-entropy of each pair and, half as heavy, that of
the right passage among a question's.

Sources named by --dev are not trained on. Of each of their questions the four passages nearest by cosine are judged,
with the right one among the passages and without it: AUROC of the largest logit, and how often the right one is first.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from settle.data.tokenizer.fast import fast_tokenizer
from settle.formats.gguf import read_gguf
from settle.infer.token_states import TokenStates
from settle.library.resolve import resolve_whole
from settle.model.encoder import encoder_of_gguf
from settle.model.reranker import Reranker

TOKENS = 120  # of a passage
NEAREST = 6  # passages by cosine that are negatives too
BATCH_TOKENS = 1024
GROUPS, NEGATIVES = 32, 5  # of a step
RATE, DECAY, WARMUP, CONSTANT = 2e-3, 0.05, 50, 0.4
ANSWER_WEIGHT, LIST_WEIGHT = 2.5, 0.5
JUDGED = 4


@dataclass(frozen=True)
class Asked:
    """A question with its passages, of which the first answers. states (M, W), ids (M,); figures (P, M, 3) and cosine
    (P,) of each passage."""

    group: str
    source: str
    kind: str
    ids: np.ndarray
    states: np.ndarray
    figures: np.ndarray
    cosine: np.ndarray


def read(rows: Sequence[dict]) -> list[Asked]:
    file = read_gguf(resolve_whole("minilm").source.path)
    tokenizer, encoder = fast_tokenizer(file.metadata), TokenStates(file)
    texts = list({row[name]: None for row in rows for name in ("question", "passage")})
    ids = {text: encoded.ids[:TOKENS] for text, encoded in zip(texts, tokenizer.encode_batch_fast(texts), strict=True)}
    states: dict[str, np.ndarray] = {}
    batch: list[str] = []
    for text in [*sorted(texts, key=lambda text: len(ids[text])), None]:
        if batch and (text is None or (len(batch) + 1) * len(ids[text]) > BATCH_TOKENS):
            for one, found in zip(batch, encoder.read([ids[b] for b in batch])[0], strict=True):
                states[one] = found[: len(ids[one])].astype(np.float16)
            batch = []
            print(f"{len(states):,} of {len(texts):,} texts read", end="\r")
        if text is not None:
            batch.append(text)
    passages = list({row["passage"]: None for row in rows})
    vectors = unit(np.stack([states[passage].astype(np.float32).mean(0) for passage in passages]))
    words = unit(encoder.words)
    answers = defaultdict(set)
    for row in rows:
        if row["label"]:
            answers[row["group"]].update((row["passage"], *row.get("also", ())))
    by_question = defaultdict(list)
    for row in rows:
        by_question[row["group"], row["question"]].append(row)
    asked = []
    for (group, question), own in by_question.items():
        right = [row["passage"] for row in own if row["label"]][:1]
        wrong = [row["passage"] for row in own if row["passage"] not in answers[group]]
        mean = unit(states[question].astype(np.float32).mean(0))
        near = (passages[i] for i in np.argsort(-(vectors @ mean)))
        more = list(islice((p for p in near if p not in answers[group] and p not in wrong), NEAREST))
        if not right:
            continue
        chosen = [*right, *wrong, *more]
        meaning, word = unit(states[question].astype(np.float32)), words[ids[question]]
        figures = np.zeros((len(chosen), len(meaning), 3), np.float32)
        for place, passage in enumerate(chosen):
            figures[place, :, 0] = (meaning @ unit(states[passage].astype(np.float32)).T).max(1)
            figures[place, :, 1] = (word @ words[ids[passage]].T).max(1)
        figures[..., 2] = figures[..., 0] * figures[..., 1]
        cosine = np.stack([vectors[passages.index(passage)] for passage in chosen]) @ mean
        source, kind = own[0]["source"], own[0]["kind"]
        asked.append(Asked(group, source, kind, np.array(ids[question]), states[question], figures, cosine))
    return asked


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


def logits(model: Reranker, chosen: Sequence[tuple[Asked, Sequence[int]]]) -> Tensor:
    """Of the passages by number of each question, one after the other."""
    longest, total = max(len(asked.ids) for asked, _ in chosen), sum(len(numbers) for _, numbers in chosen)
    table = model.encoder.tokens.weight
    question = torch.zeros(len(chosen), longest, 2 * table.shape[1])
    mask = torch.zeros(len(chosen), longest, dtype=torch.bool)
    figures, near = torch.zeros(total, longest, 3), torch.zeros(total, 1)
    owner, place = [], 0
    for row, (asked, numbers) in enumerate(chosen):
        length, end = len(asked.ids), place + len(numbers)
        own_words = table[torch.from_numpy(asked.ids)] - table.mean(0)
        question[row, :length] = torch.cat([torch.from_numpy(asked.states.astype(np.float32)), own_words], -1)
        mask[row, :length] = True
        figures[place:end, :length] = torch.from_numpy(asked.figures[list(numbers)])
        near[place:end, 0] = torch.from_numpy(asked.cosine[list(numbers)])
        owner += [row] * len(numbers)
        place = end
    x, mask = model.of_question(question)[owner] + model.of_figures(figures), mask[owner]
    for block in model.blocks:
        inner = block.norms[1](x)
        x = x + block.drop(block.to_question(inner, inner, mask))
        x = x + block.drop(block.down(F.relu(block.up(block.norms[2](x)))))
    return model.conclusion(x, mask, figures, near)


def train(model: Reranker, asked: Sequence[Asked], steps: int, seed: int) -> None:
    by_kind: dict[tuple[str, str], dict[str, list[Asked]]] = defaultdict(lambda: defaultdict(list))
    for one in asked:
        by_kind[one.source, one.kind][one.group].append(one)
    kinds, random = list(by_kind), Random(seed)
    weights = [len(by_kind[kind]) ** 0.7 * (2 if kind[1] == "real" else 1) for kind in kinds]
    adam = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    for step in range(steps):
        left = (1 - step / steps) / (1 - CONSTANT)
        for group in adam.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP, left)
        chosen = []
        for kind in random.choices(kinds, weights, k=GROUPS):
            one = random.choice(random.choice(list(by_kind[kind].values())))
            others = range(1, len(one.cosine))
            chosen.append((one, [0, *random.sample(others, min(NEGATIVES, len(others)))]))
        scores = logits(model, chosen)
        wanted = torch.tensor([float(number == 0) for _, numbers in chosen for number in numbers])
        weight = 1 + (ANSWER_WEIGHT - 1) * wanted
        loss = F.binary_cross_entropy_with_logits(scores, wanted, weight, reduction="sum") / weight.sum()
        for part in scores.split([len(numbers) for _, numbers in chosen]):
            loss = loss - LIST_WEIGHT * torch.log_softmax(part, 0)[0] / len(chosen)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()


@torch.no_grad()
def report(model: Reranker, asked: Sequence[Asked], what: str) -> None:
    there, gone, first = ([[], []] for _ in range(3))
    for one in asked:
        scores = logits(model, [(one, range(len(one.cosine)))]).numpy()
        order = np.argsort(-one.cosine)
        near, left = order[:JUDGED], order[order != 0][:JUDGED]
        for number, by in enumerate((one.cosine, scores)):
            there[number].append(by[near].max())
            gone[number].append(by[left].max())
            first[number].append(near[by[near].argmax()] == 0)
    for number, name in enumerate(("cosine", "judge")):
        a, b = np.array(there[number])[:, None], np.array(gone[number])[None]
        separated = (a > b).mean() + (a == b).mean() / 2
        print(f"{what}, {name}: AUROC {separated:.3f}, right one first {np.mean(first[number]):.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--dev", default="", help="sources, with commas between them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    asked = read([json.loads(line) for line in arguments.pairs.read_text(encoding="utf-8").splitlines()])
    dev = [one for one in asked if one.source in arguments.dev.split(",")]
    torch.manual_seed(arguments.seed)
    model = Reranker(encoder_of_gguf(read_gguf(resolve_whole("minilm").source.path)).eval())
    for block in model.blocks:
        torch.nn.init.zeros_(block.to_passage.out.weight)
        torch.nn.init.zeros_(block.to_passage.out.bias)
    train(model, [one for one in asked if one.source not in arguments.dev.split(",")], arguments.steps, arguments.seed)
    if dev:
        report(model.eval(), dev, "not trained on")
    save_file({name: weight.half().contiguous() for name, weight in model.state_dict().items()}, arguments.out)


if __name__ == "__main__":
    main()
