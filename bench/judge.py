"""Trains the judge that `settle ask` ships with, for as long as it is given.

    python bench/judge_pairs.py FOLDER... --faq FAQ.json --squad dev-v2.0.json ... --out pairs.jsonl
    python bench/judge.py pairs.jsonl --minutes 57 --out answer_judge.safetensors

The model is that of `settle tune minilm pairs.jsonl --objective rank`. Beside its loss, the cross-entropy of each pair,
are that of the right passage among a question's (weight 0.4) and that of the answer's words among the passage's, where
they are known (0.5). In the beginning some wrong passages are other questions', so that it learns first what is easy.
The weights that ship are those after 28 % of the planned time: later ones tell the training's pairs better apart, and
people's questions worse. Questions are worded again each time that they are drawn. Matrices are stored in int8, with a
scale for each row.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from judge_pairs import read_synonyms
from judge_wordings import worded_again
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from torch import Tensor

from settle.data.tokenizer.fast import fast_tokenizer
from settle.evaluate.pair_scores import separation
from settle.formats.gguf import read_gguf
from settle.library.resolve import resolve_whole
from settle.model.encoder import Reranker, encoder_of_gguf, file_names

MIX = {  # share of each kind among the questions of a step
    "squad": 0.28, "squad-none": 0.13, "sentence": 0.22, "faq": 0.20, "med": 0.03,
    "real": 0.05, "topic": 0.02, "sentence-made": 0.02, "verb": 0.04,
}  # fmt: skip
AGAIN = 0.75  # of the questions are worded again; those that are worded by another's rules already, less strongly
FAINT = 0.35
QUESTIONS, AT_ONCE = 8, 10  # of a step; pairs that are computed together
RATE, HEAD_RATE, DECAY, WARMUP, CONSTANT = 1.5e-4, 1e-3, 0.01, 25, 0.25
ANSWER_WEIGHT, LIST_WEIGHT, PLACE_WEIGHT = 1.4, 0.4, 0.5
KEPT = 0.28  # share of the time after which it ends
EASY, EASY_SHARE = 0.14, 0.6  # of the time, and of the wrong passages at its start
QUESTION_TOKENS, PASSAGE_TOKENS = 48, 112
QUANTIZED = 50_000  # weights of a matrix, from which on it is stored in int8


@dataclass(frozen=True)
class Pair:
    """number: of its question in the step. place: tokens of the passage that answer, or none."""

    number: int
    kind: str
    question: Tensor
    passage: Tensor
    answers: bool
    place: list[int]


class Questions:
    """Draws questions by kind, each kind's in an order of their own until all were drawn."""

    def __init__(self, rows: Sequence[dict], tokenizer: Tokenizer, seed: int) -> None:
        self.random, self._tokenizer = Random(seed), tokenizer
        self._synonyms = read_synonyms(Path(__file__).with_name("synonyms.txt"))
        groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
        for row in rows:
            groups[row["group"], row["question"]].append(row)
        self._by_kind: dict[str, list[list[dict]]] = defaultdict(list)
        for of in groups.values():
            self._by_kind[kind_of(of[0])].append(of)
        self._queues: dict[str, list[list[dict]]] = {kind: [] for kind in MIX if kind in self._by_kind}

    def step(self, past: float) -> Iterator[Pair]:
        """past: share of the time that has passed."""
        kinds = self.random.choices(list(self._queues), [MIX[kind] for kind in self._queues], k=QUESTIONS)
        drawn = [(kind, self._draw(kind)) for kind in kinds]
        for number, (kind, rows) in enumerate(drawn):
            question = rows[0]["question"]
            if self.random.random() < AGAIN:
                strength = 1.0 if kind in ("squad", "squad-none", "sentence", "med") else FAINT
                question = worded_again(question, self._synonyms, self.random, strength)
            first = next((row for row in rows if row["label"]), rows[0])
            others = [row for row in rows if row is not first and not row["label"]]
            wanted = 1 if kind in ("squad", "squad-none", "sentence") else 2
            for row in [first, *self.random.sample(others, min(wanted, len(others)))]:
                is_easy = not row["label"] and first["label"] and self.random.random() < EASY_SHARE * (1 - past / EASY)
                other = self.random.choice([of for _, of in drawn if of is not rows])[0] if is_easy else row
                yield self._pair(number, kind, question, other, row["label"])

    def _draw(self, kind: str) -> list[dict]:
        if not self._queues[kind]:
            self._queues[kind] = self.random.sample(self._by_kind[kind], len(self._by_kind[kind]))
        return self._queues[kind].pop()

    def _pair(self, number: int, kind: str, question: str, row: dict, label: int) -> Pair:
        asked, told = self._tokenizer.encode(question), self._tokenizer.encode(row["passage"])
        begin = row["passage"].find(row["answer"]) if label and row.get("answer") else -1
        end = begin + len(row["answer"]) if begin >= 0 else -1
        ids = _cut(told.ids, PASSAGE_TOKENS)
        place = [i for i, (start, stop) in enumerate(told.offsets[: len(ids) - 1]) if start < end and stop > begin >= 0]
        question_ids = torch.tensor(_cut(asked.ids, QUESTION_TOKENS))
        return Pair(number, kind, question_ids, torch.tensor(ids), bool(label), [i for i in place if i])


def kind_of(row: Mapping[str, str]) -> str:
    if row["source"].startswith("faq-"):
        return "faq"
    return "sentence-made" if row["kind"] == "sentence" != row["source"] else row["kind"]


def _cut(ids: list[int], most: int) -> list[int]:
    return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]


def loss_of(model: Reranker, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """→ the loss of a step, and the logits of its pairs (P,)."""
    logits: dict[int, Tensor] = {}
    places = []
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].question) + len(pairs[i].passage))
    for first in range(0, len(order), AT_ONCE):
        some = order[first : first + AT_ONCE]
        scores, shares = model.read([pairs[i].question for i in some], [pairs[i].passage for i in some])
        for place, i in enumerate(some):
            logits[i] = scores[place]
            if pairs[i].place:
                places.append(-shares[place, pairs[i].place].logsumexp(0))
    all_logits = torch.stack([logits[i] for i in range(len(pairs))])
    labels = torch.tensor([float(pair.answers) for pair in pairs])
    weights = torch.where(labels > 0, ANSWER_WEIGHT, 1.0)
    loss = F.binary_cross_entropy_with_logits(all_logits, labels, weight=weights)
    lists: dict[int, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        lists[pair.number].append(i)
    of_lists = [-all_logits[of].log_softmax(0)[0] for of in lists.values() if pairs[of[0]].answers and len(of) > 1]
    for weight, losses in ((LIST_WEIGHT, of_lists), (PLACE_WEIGHT, places)):
        if losses:
            loss = loss + weight * torch.stack(losses).mean()
    return loss, all_logits.detach()


def train(model: Reranker, questions: Questions, minutes: float) -> None:
    own = dict(model.named_parameters())
    body = [p for name, p in own.items() if name.startswith("blocks.")]
    head = [p for name, p in own.items() if not name.startswith("blocks.")]
    rates = (RATE, HEAD_RATE)
    adam = torch.optim.AdamW([{"params": body}, {"params": head}], lr=RATE, betas=(0.9, 0.98), weight_decay=DECAY)
    began, step, told = time.monotonic(), 0, 0.0
    seen: list[tuple[float, bool]] = []
    model.train()
    while (past := (time.monotonic() - began) / (60 * minutes)) < KEPT:
        fall = 1.0 if past < CONSTANT else 0.5 * (1 + math.cos(math.pi * (past - CONSTANT) / (1 - CONSTANT)))
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * min(1, (step + 1) / WARMUP) * max(0.02, fall)
        pairs = list(questions.step(past))
        loss, logits = loss_of(model, pairs)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        step += 1
        seen += zip(logits.tolist(), (pair.answers for pair in pairs), strict=True)
        if past - told > 0.02:
            scores, answers = (np.array(column) for column in zip(*seen, strict=True))
            print(
                f"{past:4.0%} step {step:,} AUROC of the pairs trained on {separation(scores, answers):.3f}", flush=True
            )
            seen, told = [], past


def stored(model: Reranker) -> dict[str, np.ndarray]:
    """Return the weights as the product reads them."""
    names, out = file_names(len(model.encoder.blocks)), {}
    for name, weight in model.state_dict().items():
        array = weight.detach().numpy()
        own = names.get(name, name)
        if array.ndim == 2 and array.size >= QUANTIZED:
            scale = np.abs(array).max(1) / 127
            out[own], out[f"{own}_scale"] = np.round(array / scale[:, None]).astype(np.int8), scale.astype(np.float32)
        else:
            out[own] = array.astype(np.float32)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=57, help="planned; it takes 28 %% of that")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    file = read_gguf(resolve_whole("minilm").source.path)
    rows = [json.loads(line) for line in arguments.pairs.read_text(encoding="utf-8").splitlines()]
    torch.manual_seed(arguments.seed)
    model = Reranker(encoder_of_gguf(file))
    train(model, Questions(rows, fast_tokenizer(file.metadata), arguments.seed), arguments.minutes)
    save_file(stored(model), arguments.out)


if __name__ == "__main__":
    main()
