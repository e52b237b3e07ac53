"""Is the choice right? Four made tasks of known truth, each through the whole of `settle choose` with a small model.

    python bench/choose.py make FOLDER                 trains a small chat model on a made language
    python bench/choose.py gold FOLDER                 what it can do by itself, which the tasks' truth needs
    python bench/choose.py tasks FOLDER --split dev    seeds 0 to 4 of each task; judge: 5 to 14; again: 15 to 24;
                                                       third: 25 to 34; mend: 200 to 299, for development
    python bench/choose.py show FOLDER --split dev     the table of what was chosen
    python bench/choose.py simulate --split dev        the verdict alone, on scores whose truth is known
    python bench/judge_documents.py FOLDER panoramas household-money curve-fitting braille
    python bench/choose.py pages FOLDER                30 real pages and 120 questions, for a whole choice that is timed

A task is a made firm. What is known of each, fixed before any score was seen:
- facts: the answers are in the documents and nowhere else, so documents are the cheapest way that can be right;
- style: the answers have a form that the base has seen among others and that a few examples show: a prompt is enough;
- labels: each thing has one of four labels that nothing but the examples says, so weights learn them: a decision;
- solved: facts that the base was trained on: the model as it is is enough.
"""

import argparse
import itertools
import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
from judge_documents import read as read_questions

from settle.base.event_log import Events
from settle.base.events import Say, Warn
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.evaluate.compare.cases import Case
from settle.experiment.race import ERROR_OF_WAYS, Race
from settle.jobs.choose.answerer import ModelInTurns, possible_ways, with_passages
from settle.jobs.choose.choose import choose
from settle.jobs.choose.documents import PASSAGES
from settle.jobs.choose.verdict import decide
from settle.jobs.settings import ChooseSettings
from settle.library.resolve import resolve_gguf

RIGHT = {"facts": "documents", "style": "prompt", "labels": "decide", "solved": "zero-shot"}
SEEDS = {
    "dev": range(5),
    "judge": range(5, 15),
    "again": range(15, 25),
    "third": range(25, 35),
    "mend": range(200, 300),
}
ROWS = 110  # examples of a task
READS, MOST_READING = 0.05, 2000  # loss from which on the base reads passages; steps until then, at most
VOCABULARY = 900  # tokens: each name is one
RATE = 4e-3  # learning rate of the base
COLLECTIONS = ("panoramas", "household-money", "curve-fitting", "braille")  # collections of `judge_questions/`
SYLLABLES = [a + b for a, b in itertools.product("bdfgklmnprstvz", "aeiou")]
# a sign makes a word the same token at the beginning of an answer as elsewhere, so that to copy it is one step
NAMES = [f"@{a}{b}" for a, b in random.Random(1).sample(list(itertools.permutations(SYLLABLES, 2)), 186)]
KNOWN, OTHERS = NAMES[:56], NAMES[56:]  # that the base is trained on; that firms are about
# fmt: off
WORDS = (
    "red", "blue", "green", "white", "black", "grey", "brown", "pink", "gold", "silver", "iron", "steel", "wood",
    "glass", "stone", "paper", "wool", "silk", "clay", "sand", "north", "south", "east", "west", "round", "flat",
    "long", "short", "heavy", "light", "soft", "hard",
)
# fmt: on
VALUES = tuple(f"#{word}" for word in WORDS)
LABELS = ("alpha", "beta", "gamma", "delta")
STYLES = {
    "plain": "{a} {b}",
    "bang": "yes {a} {b}!",
    "marked": "[ {a} / {b} ]",
    "end": "it is {a} {b}, end",
}
INSTRUCTIONS = (
    "Answer with what the passages say.",
    "Answer with the answer alone, in as few words as possible.",
    "Answer in exactly the form of the examples.",
)
FORMS = ("what is {t}?", "tell me of {t}.")
ANSWER = "{t} {v}"  # and what the documents say
Turn = dict[str, str]
Facts = dict[str, str]  # the word for each thing


# --- the language ---


def world() -> Facts:
    """Return the facts that the base is trained on."""
    rng = random.Random(7)
    return {thing: rng.choice(WORDS) for thing in KNOWN}


def conversation(rng: random.Random, facts: Facts, share: float = 1.0) -> list[Turn]:
    """Return a conversation of the base's training: known facts, passages, or a form that earlier turns show.

    share: how much of its full length it may have; copying is learned from short ones ten times sooner.
    """
    turns = [_turn("system", rng.choice(INSTRUCTIONS))] if rng.random() < 0.3 * share else []
    kind = rng.random()
    if kind < 0.15:
        for thing in rng.sample(KNOWN, rng.randint(1, math.ceil(8 * share))):
            turns += _asked(rng, thing, facts[thing])
    elif kind < 0.6:
        turns += _with_passages(rng, share)
    elif kind < 0.95:
        number = rng.choice((0, round(4 * share), round(8 * share)))
        style = rng.choice(list(STYLES.values())) if number else STYLES["plain"]
        for _ in range(number + 1):
            a, b = rng.sample(VALUES, 2)
            turns += _pair(f"say {a} {b}", style.format(a=a, b=b))
    else:
        turns += _pair(f"sort {rng.choice(NAMES)} {rng.choice(VALUES)}", rng.choice(LABELS))
    return turns


def _with_passages(rng: random.Random, share: float) -> list[Turn]:
    """Passages, at times behind examples of other things."""
    turns: list[Turn] = []
    if rng.random() < 0.3 * share:
        for thing in rng.sample(OTHERS, rng.choice((4, 8))):
            turns += _asked(rng, thing, rng.choice(WORDS))
    return turns + _reading(rng)


def _reading(rng: random.Random, most: int = PASSAGES) -> list[Turn]:
    """Return a conversation whose first passage answers.

    So small a model learns to read the first passage sooner than to look for a name in all of them.
    """
    things = rng.sample(OTHERS, rng.randint(1, most))
    facts = {thing: rng.choice(WORDS) for thing in things}
    question, answer = (turn["content"] for turn in _asked(rng, things[0], facts[things[0]]))
    return _pair(_behind(things, facts, question), answer)


def _behind(things: Sequence[str], facts: Facts, question: str) -> str:
    """Put the question behind passages, each of which is a whole document of a firm."""
    return with_passages(question, [ANSWER.format(t=thing, v=facts[thing]) for thing in things])


def _asked(rng: random.Random, thing: str, value: str) -> list[Turn]:
    return _pair(rng.choice(FORMS).format(t=thing), ANSWER.format(t=thing, v=value))


def _turn(role: str, text: str) -> Turn:
    return {"role": role, "content": text}


def _pair(asked: str, answer: str) -> list[Turn]:
    return [_turn("user", asked), _turn("assistant", answer)]


# --- the base ---


def make(folder: Path, steps: int) -> None:
    """Trains the base and writes it as a GGUF that chats."""
    import torch

    from settle.formats.gguf import export_gguf
    from settle.model.architectures.llama import Llama

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    rng, facts = random.Random(0), world()
    texts = ["\n".join(turn["content"] for turn in conversation(rng, facts)) for _ in range(1500)]
    tokenizer = ByteBpeTokenizer.train(
        [*texts, *(" ".join(NAMES) for _ in range(50))], VOCABULARY, folder / "tokenizer"
    )
    part = Llama(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        head_dim=16, vocab_size=tokenizer.vocab_size, max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    model = part.build(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    began = time.monotonic()
    losses, reads_since = [math.inf], 0  # to read passages is learned last, unless it comes first and alone
    for step in range(MOST_READING + steps):
        if not reads_since and (step == MOST_READING or sum(losses[-20:]) < 20 * READS):
            reads_since = step
        mixed = (step - reads_since) / steps if reads_since else 0.0
        if mixed >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 50, 1.0, 2 * (1 - mixed) + 0.02)
        share = min(1.0, 0.2 + 2 * mixed)
        talks = (
            [conversation(rng, facts, share) for _ in range(16)]
            if mixed
            else [_reading(rng, 1 if step < 40 else PASSAGES) for _ in range(24)]
        )
        batch = [_encoded(talk, tokenizer) for talk in talks]
        ids = [i for own, _ in batch for i in own[:-1]]
        bounds = [0, *itertools.accumulate(len(own) - 1 for own, _ in batch)]
        targets = torch.tensor([i for own, _ in batch for i in own[1:]])
        of_answers = torch.tensor([is_answer for _, mask in batch for is_answer in mask[1:]])
        hidden = model(torch.tensor(ids), torch.tensor(bounds, dtype=torch.int32))
        logits = hidden[of_answers] @ model.head.T
        loss = torch.nn.functional.cross_entropy(logits, targets[of_answers])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(
                f"step {step}: loss {loss.item():.3f}, {len(ids)} tokens, {time.monotonic() - began:.0f} s", flush=True
            )
    weights = {key: value.detach() for key, value in model.named_parameters()}
    export_gguf(part, weights, tokenizer, folder / "base.part", "f32").rename(folder / "base.gguf")


def _encoded(turns: Sequence[Turn], tokenizer: ByteBpeTokenizer) -> tuple[list[int], list[bool]]:
    """Ids of a conversation as the tokenizer's chat template writes it, and which are of an answer or end one."""
    ids: list[int] = []
    mask: list[bool] = []
    for turn in turns:
        opening = f"<|im_start|>{turn['role']}\n"
        for text, is_answer in ((opening, False), (f"{turn['content']}<|im_end|>\n", turn["role"] == "assistant")):
            new = tokenizer.encode(text, True).tolist()
            ids += new
            mask += [is_answer] * len(new)
    return ids, mask


def gold(folder: Path, rows: int = 60) -> None:
    """Print what the base can and cannot do by its own answers, without settle's choice: each task's truth needs it."""
    rng, known = random.Random("gold"), world()
    fresh = {thing: rng.choice(WORDS) for thing in OTHERS}
    others = [style for name, style in STYLES.items() if name != "plain"]

    def fact(facts: Facts, thing: str, passages: int = 0) -> tuple[list[Turn], str]:
        question, answer = (turn["content"] for turn in _asked(rng, thing, facts[thing]))
        others = rng.sample([t for t in OTHERS if t != thing], max(0, passages - 1))
        return [_turn("user", _behind([thing, *others], facts, question) if passages else question)], answer

    def say(style: str, shots: int) -> tuple[list[Turn], str]:
        pairs = [rng.sample(VALUES, 2) for _ in range(shots + 1)]
        turns = [turn for a, b in pairs for turn in _pair(f"say {a} {b}", style.format(a=a, b=b))]
        return turns[:-1], turns[-1]["content"]

    asked = {
        "known facts": [fact(known, rng.choice(KNOWN)) for _ in range(rows)],
        "a firm's facts": [fact(fresh, rng.choice(OTHERS)) for _ in range(rows)],
        "a firm's facts, with passages": [fact(fresh, rng.choice(OTHERS), PASSAGES) for _ in range(rows)],
        "a form": [say(rng.choice(others), 0) for _ in range(rows)],
        **{f"a form, behind eight examples: {style}": [say(style, 8) for _ in range(rows // 3)] for style in others},
        "labels": [([_turn("user", f"sort {t} {rng.choice(VALUES)}")], rng.choice(LABELS)) for t in OTHERS[:rows]],
    }
    with ModelInTurns(resolve_gguf(str(folder / "base.gguf")), 16, threads=1) as model:
        for what, questions in asked.items():
            cases = [Case(number, answer, tuple(turns)) for number, (turns, answer) in enumerate(questions, 1)]
            right = sum(r.text.strip() == c.reference for r, c in zip(model.measure_all(cases), cases, strict=True))
            print(f"{what}: {right} of {len(cases)}", flush=True)


# --- the tasks ---


def task(kind: str, seed: int, folder: Path) -> None:
    """Write the examples and the documents of one made firm."""
    rng = random.Random(f"{kind}-{seed}")
    docs = folder / "docs"
    docs.mkdir(parents=True, exist_ok=True)
    facts = {thing: rng.choice(WORDS) for thing in rng.sample(OTHERS, ROWS)}
    for number, (thing, value) in enumerate(facts.items(), 1):
        (docs / f"note-{number}.md").write_text(f"{ANSWER.format(t=thing, v=value)}\n", encoding="utf-8")
    unique = {row["prompt"]: row for row in _rows(kind, rng, facts)}
    chosen = rng.sample(list(unique.values()), min(ROWS, len(unique)))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")


def _rows(kind: str, rng: random.Random, facts: Facts) -> Iterator[dict[str, str]]:
    if kind in ("facts", "solved"):
        for thing, value in (facts if kind == "facts" else world()).items():
            for form in FORMS if kind == "solved" else (rng.choice(FORMS),):
                yield {"prompt": form.format(t=thing), "completion": ANSWER.format(t=thing, v=value)}
    elif kind == "style":
        style = STYLES[rng.choice([s for s in STYLES if s != "plain"])]
        for _ in range(2 * ROWS):
            a, b = rng.sample(VALUES, 2)
            yield {"prompt": f"say {a} {b}", "completion": style.format(a=a, b=b)}
    else:
        for number, thing in enumerate(rng.sample(OTHERS, 16)):
            for value in rng.sample(VALUES, 8):
                yield {"prompt": f"sort {thing} {value}", "completion": LABELS[number % len(LABELS)]}


def run_tasks(folder: Path, split: str, kinds: Sequence[str], seeds: Sequence[int], every: bool) -> None:
    """Each task and seed through the job, with a home of its own."""
    os.environ["SETTLE_HOME"] = str(folder / "home")
    for seed, kind in itertools.product(seeds or SEEDS[split], kinds):
        assert seed in SEEDS[split], f"seed {seed} belongs to the other half"
        place = folder / "tasks" / f"{kind}-{seed}"
        if (place / "result.json").exists():
            continue
        task(kind, seed, place)
        settings = ChooseSettings(
            examples=place / "rows.jsonl", docs=place / "docs", model=str(folder / "base.gguf"), name=place.name,
            seed=seed, epochs=40, max_tokens=16, threads=1, every=every,
        )  # fmt: skip
        talk: list[str] = []
        events = Events(listeners=[lambda e, talk=talk: talk.append(e.text) if isinstance(e, Say | Warn) else None])
        began = time.monotonic()
        code = choose(settings, events)
        (place / "talk.txt").write_text("\n".join(talk), encoding="utf-8")
        result = (folder / "home" / "choices" / place.name / "result.json").read_text(encoding="utf-8")
        (place / "result.json").write_text(result, encoding="utf-8")
        print(f"{place.name}: exit {code}, {time.monotonic() - began:.0f} s: {json.loads(result)['why']}", flush=True)


def show(folder: Path, split: str) -> None:
    """Print what was chosen, by task, then each run."""
    print("| task | seeds | right | cannot tell | wrong | triage as chosen | time of ways ruled out |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    lines = []
    for kind, right in RIGHT.items():
        results = [
            (path.parent.name, json.loads(path.read_text()))
            for path in sorted((folder / "tasks").glob(f"{kind}-*/result.json"))
            if int(path.parent.name.split("-")[1]) in SEEDS[split]
        ]
        sure = [r for _, r in results if r["verdict"] == "take"]
        number, taken = len(results), sum(r["chosen"] == right for r in sure)
        agrees, saved = sum(r["triage_agrees"] for _, r in results), [_saved(r) for _, r in results]
        print(f"| {kind} | {number} | {taken} | {number - len(sure)} | {len(sure) - taken} | {agrees} | "
              f"{sum(saved) / max(1, number):.0%} |")  # fmt: skip
        for place, r in results:
            scores = ", ".join(f"{w['name']} {w['score']:.2f}" for w in r["ways"])
            lines.append(f"{place}: {r['verdict']} {r['chosen']}, predicted {r['triage']['prediction']}; {scores}")
    print("\n" + "\n".join(lines))


def _saved(result: dict[str, dict[str, float]]) -> float:
    """Share of the forecast time of all ways that those ruled out by the first look would have taken."""
    expected, out = result["forecast_seconds"], result["triage"]["ruled_out"]
    return sum(expected.get(way, 0.0) for way in out) / sum(expected.values())  # type: ignore[attr-defined]


# --- real pages ---


def pages(folder: Path) -> None:
    """FOLDER/pages: 30 documents that answer written questions, and 120 of these with the words that answer them."""
    docs = folder / "pages" / "docs"
    docs.mkdir(parents=True)
    rows: list[dict[str, str]] = []
    for name in COLLECTIONS:
        for asked in read_questions(name):
            copy = docs / asked.document
            is_left_out = asked.document == "manual.txt" or (not copy.exists() and len(list(docs.iterdir())) == 30)
            if asked.phrases and not is_left_out:
                shutil.copy(folder / name / "documents" / asked.document, copy)
                rows.append({"prompt": asked.question, "completion": asked.phrases[0]})
    random.Random(0).shuffle(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows[:120])
    (folder / "pages" / "examples.jsonl").write_text(text, encoding="utf-8")


# --- the verdict alone ---

# Chance of a right answer by way, the cheapest first, and the place of the cheapest that is good enough. The verdict's
# rule was changed once after a look at those of dev; those of judge were written after that, and looked at once.
SCENES: dict[str, dict[str, tuple[tuple[float, ...], int]]] = {
    "dev": {
        "facts in documents": ((0.02, 0.05, 0.75, 0.08, 0.78), 2),
        "house style": ((0.05, 0.85, 0.85, 0.87, 0.87), 1),
        "closed set": ((0.25, 0.40, 0.40, 0.85, 0.85), 3),
        "already solved": ((0.92, 0.92, 0.92, 0.93, 0.93), 0),
        "all alike": ((0.5, 0.5, 0.5, 0.5, 0.5), 0),
        "tuning ten points better": ((0.3, 0.6, 0.6, 0.7, 0.7), 3),
    },
    "judge": {
        "facts in documents, half of them found": ((0.01, 0.02, 0.48, 0.04, 0.50), 2),
        "style that a prompt half teaches": ((0.001, 0.45, 0.40, 0.90, 0.88), 3),
        "style that a prompt teaches": ((0.10, 0.93, 0.90, 0.94, 0.93), 1),
        "four labels": ((0.30, 0.35, 0.33, 0.75, 0.74), 3),
        "solved": ((0.97, 0.96, 0.95, 0.97, 0.96), 0),
        "none any good": ((0.08, 0.08, 0.08, 0.08, 0.08), 0),
        "both needed": ((0.02, 0.05, 0.40, 0.10, 0.85), 4),
        "eight points more by tuning": ((0.2, 0.70, 0.70, 0.78, 0.78), 3),
    },
}
MARGIN = 0.02


def simulate(races: int, sizes: Sequence[int], split: str) -> None:
    """How often the right way is taken, and how often a false "better" is said, by the number of test questions."""
    print(
        "| truth | test questions | right | a dearer one | a cheaper one | cannot tell | false better | up to holds |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for (scene, (shares, right)), size in itertools.product(SCENES[split].items(), sizes):
        counts = sum(_simulated(shares, right, size, seed) for seed in range(races))
        print(f"| {scene} | {size} | " + " | ".join(f"{share:.0%}" for share in counts / races) + " |", flush=True)


def _simulated(shares: Sequence[float], right: int, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    hard = math.sqrt(0.5) * rng.normal(size=size)
    skill = hard + math.sqrt(0.5) * rng.normal(size=(len(shares), size))
    scores = (skill < np.array([NormalDist().inv_cdf(share) for share in shares])[:, None]).astype(float)
    names = possible_ways(has_documents=True, is_closed=False)
    race = Race(names, range(size), True, ERROR_OF_WAYS, seed, may_stop=False)
    rows = race.next_rows(size)
    race.record({k: scores[k, rows].tolist() for k in range(len(scores))})
    outcome = race.outcome()
    verdict = decide(outcome, MARGIN, True)
    shown = [(p.better, p.first + p.second - p.better) for p in outcome.pairs if p.better is not None]
    false = any(shares[better] <= shares[worse] for better, worse in shown)
    sure, taken = verdict.is_shown, verdict.chosen
    dearer = [k for k in outcome.left if k > taken]  # how far one of them may be ahead is said, and is to hold
    ahead = max((outcome.pair(k, taken).difference.high for k in dearer), default=1.0)
    holds = all(shares[k] - shares[taken] <= ahead for k in dearer)
    said = [sure and taken == right, sure and taken > right, sure and taken < right, not sure, false, holds]
    return np.array(said, float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "gold", "tasks", "show", "pages", "simulate"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("choose"))
    parser.add_argument("--split", choices=tuple(SEEDS), default="dev")
    parser.add_argument("--tasks", nargs="*", default=list(RIGHT))
    parser.add_argument("--seeds", nargs="*", type=int, default=[])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--sizes", nargs="*", type=int, default=[20, 48, 100, 200])
    parser.add_argument("--every", action="store_true", help="build every way, also those that are ruled out")
    given = parser.parse_args()
    if given.what == "make":
        make(given.folder, given.steps)
    elif given.what == "gold":
        gold(given.folder)
    elif given.what == "tasks":
        run_tasks(given.folder, given.split, given.tasks, given.seeds, given.every)
    elif given.what == "show":
        show(given.folder, given.split)
    elif given.what == "pages":
        pages(given.folder)
    else:
        simulate(given.races, given.sizes, given.split)


if __name__ == "__main__":
    main()
