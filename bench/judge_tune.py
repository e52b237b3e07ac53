"""Trains the judge further, on people's questions with the passages that the search brings for them.

    python bench/judge_tune.py lists.jsonl ... --start FIRST.safetensors --minutes 30 --out answer_judge.safetensors

FIRST is what `judge.py` makes; the lists are those of `judge_lists.py`. One loss for what the judge is asked: of a
question's passages and "none of them", the likelier is the one that answers, as a softmax over their logits and 0. So
the logarithm of the sum of their exponentials is the logit of an answer among them. Beside it (weight 0.3) is that of
the answer's words among the passage's. Passages are read through the window that `settle ask` has.

Of an answerable question one time in three the passages that answer are left out, and none is right. Questions are
worded again each time that they are drawn. --share NAME=1 gives a source's questions another weight than 1.

--gutted 0.5 shows in half of an answerable question's draws the passage that answers less the sentence or row that
does, beside the whole one or alone, and as often takes another sentence away from passages that answer, so that a gap
is no sign. Not of rows that `judge_entries.py` has made, of which the whole entry answers.

--bfloat16 computes the layers of the encoder in bfloat16, where the processor has instructions for it: 1.7 times as
fast there. Weights, sums and the head stay in float32. --mean-with takes the mean with other weights at the end, such
as those of before: what a new kind of question taught costs the old kinds less then.
"""

import argparse
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from judge import HEAD_RATE, stored
from judge_pairs import read_synonyms
from judge_wordings import worded_again
from safetensors.numpy import load_file, save_file
from torch import Tensor

from settle.evaluate.pair_scores import separation
from settle.formats.gguf import read_gguf
from settle.library.resolve import resolve_whole
from settle.model.encoder import Reranker, encoder_of_gguf, file_names
from settle.retrieve.answer.answer_judge import SCALE, AnswerJudge
from settle.retrieve.index.catalogue import Passage

QUESTIONS, PASSAGES, AT_ONCE = 8, 2, 8  # of a step, of a question, pairs that are computed together
LEFT_OUT, ENTRY_LEFT_OUT = 0.35, 0.7  # of the answerable questions' answers; of entries of which nothing else says it
AGAIN, STRENGTH = 0.6, 0.5  # of the questions are worded again, with that share of the changes
RATE, DECAY, WARMUP, CONSTANT, HEAD_SHARE = 1e-4, 0.01, 20, 0.35, 0.3
PLACE_WEIGHT = 0.3
FAR = 4  # passages that are no wrong ones where something else says what an entry does


@dataclass(frozen=True)
class Pair:
    """number: of its question in the step. place: tokens of the passage that answer, or none."""

    number: int
    question: Tensor
    passage: Tensor
    answers: bool
    place: list[int]


class Lists:
    """Draws questions, each source's as often as its share says."""

    def __init__(
        self, rows: Sequence[dict[str, Any]], reader: AnswerJudge, shares: Mapping[str, float], seed: int, gutted: float
    ) -> None:
        self._random, self._reader, self._gutted = Random(seed), reader, gutted
        self._synonyms = read_synonyms(Path(__file__).with_name("synonyms.txt"))
        self._by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if any(hit["right"] for hit in row["hits"]) or not row["answerable"] and row["hits"]:
                self._by_source[row["source"]].append(row)
        self._weights = {source: len(of) * shares.get(source, 1.0) for source, of in self._by_source.items()}
        self._queues: dict[str, list[dict[str, Any]]] = {source: [] for source in self._by_source}

    def step(self) -> Iterator[Pair]:
        sources = self._random.choices(list(self._weights), list(self._weights.values()), k=QUESTIONS)
        for number, source in enumerate(sources):
            if not self._queues[source]:
                self._queues[source] = self._random.sample(self._by_source[source], len(self._by_source[source]))
            row = self._queues[source].pop()
            question = row["question"]
            if self._random.random() < AGAIN:
                question = worded_again(question, self._synonyms, self._random, STRENGTH)
            asked = self._reader.question_ids(question)
            for hit in self._hits(row):
                yield self._pair(number, asked, hit)

    def _hits(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        right = [hit for hit in row["hits"] if hit["right"]][:1]
        others = [hit for hit in row["hits"] if not hit["right"]]
        is_entry, is_elsewhere = "elsewhere" in row, row.get("elsewhere", False)
        others = others[FAR:] if is_elsewhere else others  # the nearest may say it as well
        can_gut = right and not is_entry and self._random.random() < self._gutted
        lesser = gutted(right[0]) if can_gut else None
        out = 0.5 if lesser else ENTRY_LEFT_OUT if is_entry else LEFT_OUT
        if right and (lesser or others) and not is_elsewhere and self._random.random() < out:
            right = []
        elif right and not is_entry and self._random.random() < self._gutted:
            right = [with_gap(right[0], self._random)]
        near = others[: 4 if not right else 3]
        near = [lesser] * (lesser is not None) + self._random.sample(near, min(len(near), PASSAGES))
        return [*right, *near[: PASSAGES - len(right)]]

    def _pair(self, number: int, asked: list[int], hit: dict[str, Any]) -> Pair:
        window = self._reader.window(asked, Passage(0, hit["text"], tuple(hit["headings"]), 0))
        place: list[int] = []
        if hit["span"]:
            begin, end = hit["span"]
            place = [token for token, at in enumerate(window.places) if begin <= at < end]
        return Pair(number, torch.tensor(asked), torch.tensor(window.ids), hit["right"], place)


def units(text: str) -> list[tuple[int, int]]:
    """Where the lines and sentences of a text begin and end."""
    ends = [match.end() for match in re.finditer(r"\n+|(?<=[.!?])\s+(?=[A-Z\"'“(\[*`])|$", text)]
    return [(a, b) for a, b in zip([0, *ends], ends, strict=False) if text[a:b].strip()]


def gutted(hit: dict[str, Any]) -> dict[str, Any] | None:
    """Return a passage without its lines or sentences that answer; None if that leaves nothing, or the answer."""
    if not hit["span"]:
        return None
    text, (begin, end) = hit["text"], hit["span"]
    left = "".join(text[a:b] for a, b in units(text) if b <= begin or a >= end)
    is_gone = left.strip() and text[begin:end] not in left
    return {**hit, "text": left, "right": False, "span": None} if is_gone else None


def with_gap(hit: dict[str, Any], random: Random) -> dict[str, Any]:
    """Return a passage without one of the lines or sentences that do not answer, if it is known which do."""
    if not hit["span"]:
        return hit
    text, (begin, end) = hit["text"], hit["span"]
    others = [(a, b) for a, b in units(text) if b <= begin or a >= end]
    if not others:
        return hit
    a, b = random.choice(others)
    shift = b - a if b <= begin else 0
    return {**hit, "text": text[:a] + text[b:], "span": (begin - shift, end - shift)}


def loss_of(model: Reranker, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """→ the loss of a step, the logits of an answer among each question's passages (Q,), and whether there is one."""
    logits: dict[int, Tensor] = {}
    places = []
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].passage))
    for first in range(0, len(order), AT_ONCE):
        some = order[first : first + AT_ONCE]
        scores, shares = model.read([pairs[i].question for i in some], [pairs[i].passage for i in some])
        for row, i in enumerate(some):
            logits[i] = scores[row]
            if pairs[i].place:
                places.append(-shares[row, pairs[i].place].logsumexp(0))
    lists: dict[int, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        lists[pair.number].append(i)
    none, losses, answers, there = torch.zeros(1), [], [], []
    for of in lists.values():
        of_list = torch.stack([logits[i] for i in of])
        right = [logits[i] for i in of if pairs[i].answers]
        total = torch.cat([none, of_list]).logsumexp(0)
        losses.append(total - (torch.stack(right).logsumexp(0) if right else none[0]))
        answers.append(of_list.detach().logsumexp(0))
        there.append(bool(right))
    loss = torch.stack(losses).mean()
    if places:
        loss = loss + PLACE_WEIGHT * torch.stack(places).mean()
    return loss, torch.stack(answers), torch.tensor(there)


def train(model: Reranker, lists: Lists, minutes: float, constant: float, out: Path, save_every: float) -> None:
    """constant: share of the time after which the rate begins to fall."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    body = [p for name, p in own.items() if name.startswith("blocks.")]
    head = [p for name, p in own.items() if not name.startswith("blocks.")]
    adam = torch.optim.AdamW([{"params": body}, {"params": head}], lr=RATE, betas=(0.9, 0.98), weight_decay=DECAY)
    began, step, told, saved = time.process_time(), 0, 0.0, 0.0
    seen: list[tuple[float, bool]] = []
    losses: list[float] = []
    model.train()
    while (past := (time.process_time() - began) / (60 * minutes)) < 1:
        fall = 0.5 * (1 + math.cos(math.pi * max(0.0, past - constant) / max(1e-9, 1 - constant)))
        fall = min(1, (step + 1) / WARMUP) * max(0.02, fall)
        for group, rate in zip(adam.param_groups, (RATE, HEAD_SHARE * HEAD_RATE), strict=True):
            group["lr"] = rate * fall
        loss, logits, there = loss_of(model, list(lists.step()))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        step += 1
        losses.append(float(loss.detach()))
        seen += zip(logits.tolist(), there.tolist(), strict=True)
        if past - told > 0.05:
            scores, answers = (np.array(column) for column in zip(*seen, strict=True))
            share = separation(scores, answers)
            print(
                f"{past:4.0%} step {step:,} loss {np.mean(losses):.3f} AUROC {share:.3f}",
                flush=True,
            )
            seen, losses, told = [], [], past
        if save_every and (past - saved) * minutes > save_every:
            save_file(stored(model), out.with_suffix(f".{step}.safetensors"))
            saved = past


def restore(model: Reranker, path: Path) -> None:
    """Read weights as `judge.py` stores them into a model."""
    file = load_file(path)
    own = {gguf: name for name, gguf in file_names(len(model.encoder.blocks)).items()}
    weights = {
        own.get(name, name): torch.from_numpy(
            array.astype(np.float32) * (file[name + SCALE][:, None] if name + SCALE in file else 1)
        )
        for name, array in file.items()
        if not name.endswith(SCALE)
    }
    model.load_state_dict(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("lists", nargs="+", type=Path)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30, help="of processor time")
    parser.add_argument("--constant", type=float, default=CONSTANT, help="share of the time before the rate falls")
    parser.add_argument("--save-every", type=float, default=0, help="minutes")
    parser.add_argument("--share", nargs="*", default=[], metavar="NAME=SHARE")
    parser.add_argument("--gutted", type=float, default=0, help="share of the draws, from 0 to 1")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--mean-with", type=Path, metavar="WEIGHTS", help="store the mean with these")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    file = read_gguf(resolve_whole("minilm").source.path)
    torch.manual_seed(arguments.seed)
    model = Reranker(encoder_of_gguf(file))
    restore(model, arguments.start)
    for part in (model.blocks[0], model.figures):
        part.requires_grad_(False)
    model.segments.requires_grad_(False)
    if arguments.bfloat16:
        for block in (*model.blocks, *model.encoder.blocks):
            block.forward = torch.autocast("cpu", torch.bfloat16)(block.forward)
    rows = [json.loads(line) for path in arguments.lists for line in path.read_text(encoding="utf-8").splitlines()]
    shares = {name: float(share) for name, _, share in (pair.partition("=") for pair in arguments.share)}
    lists = Lists(rows, AnswerJudge(file, arguments.start), shares, arguments.seed, arguments.gutted)
    train(model, lists, arguments.minutes, arguments.constant, arguments.out, arguments.save_every)
    if arguments.mean_with:
        learned = {name: weight.clone() for name, weight in model.state_dict().items()}
        restore(model, arguments.mean_with)
        model.load_state_dict({name: (weight + learned[name]) / 2 for name, weight in model.state_dict().items()})
    save_file(stored(model), arguments.out)


if __name__ == "__main__":
    main()
