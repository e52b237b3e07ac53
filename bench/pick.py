"""Is the pick right? Tasks of known truth with real models, and the statistics simulated.

    python bench/pick.py simulate --races 1000    coverage of intervals and false claims, 15 to 400 prompts
    python bench/pick.py make FOLDER              trains small models, and cuts prompts for five tasks from text
    python bench/pick.py tasks FOLDER --seeds 40  every model answers every prompt once; each seed then picks on 40 of
                                                  them, as `settle pick` does, from the answers kept

FOLDER may hold further tasks: a folder each with rows.jsonl, and models.json, name → GGUF file. The truth of a task
are the mean scores over all of its prompts.
"""

import argparse
import inspect
import json
import math
import re
import textwrap
from argparse import _ActionsContainer
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import best_suited, named
from settle.experiment.race import Outcome, Race
from settle.jobs.pick.verdict import MARGIN

SLACK = 0.02  # mean scores nearer than this are no mistake to confuse
NEXT = r"\A\s*(\S{2})"  # the next two letters of a text, which the answer has to begin with
SHARED = 0.3  # correlation of two candidates on one prompt: prompts are hard or easy for everybody


# --- simulation ---

SCENES: dict[str, tuple[float, ...]] = {
    "two equal, 60 %": (0.6, 0.6),
    "three equal, 60 %": (0.6, 0.6, 0.6),
    "four equal, 50 %": (0.5, 0.5, 0.5, 0.5),
    "three equal, 95 %: few differ": (0.95, 0.95, 0.95),
    "two equal best, two equal worse": (0.8, 0.8, 0.4, 0.4),
    "tuned among untuned": (0.9, 0.2, 0.2),
    "one good, one middling, one bad": (0.9, 0.6, 0.1),
    "ten points": (0.7, 0.6),
    "three points, many right": (0.95, 0.92),
    "two good, one bad": (0.8, 0.8, 0.2),
    "27, 3, 2 %": (0.27, 0.03, 0.02),
    "60, 40, 40 %": (0.6, 0.4, 0.4),
    "60, 35, 35, 35 %": (0.6, 0.35, 0.35, 0.35),
    "50, 26, 26 %": (0.5, 0.26, 0.26),
    "35, 8, 8, 8 %": (0.35, 0.08, 0.08, 0.08),
    "80, 80, 50 %": (0.8, 0.8, 0.5),
    "40, 40, 40 %": (0.4, 0.4, 0.4),
}


def simulate(races: int, sizes: list[int]) -> None:
    """Print a table of what a race claims where the truth is known."""
    print("| truth | prompts | false claims | all best left | shown | answers saved | coverage | alike | up to holds |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for scene, shares in SCENES.items():
        for size in sizes:
            print(_row(scene, shares, size, [_raced(shares, size, seed) for seed in range(races)]), flush=True)


def _row(scene: str, shares: tuple[float, ...], size: int, outcomes: list[Outcome]) -> str:
    false = np.mean([any(_is_false(p.first, p.second, p.better, shares) for p in o.pairs) for o in outcomes])
    best = {k for k, share in enumerate(shares) if share == max(shares)}
    kept = np.mean([best <= set(o.left) for o in outcomes])
    shown = np.mean([p.is_shown for o in outcomes for p in o.pairs])
    inside = np.mean([p.difference.contains(shares[p.first] - shares[p.second]) for o in outcomes for p in o.pairs])
    saved = np.mean([o.saved for o in outcomes])
    alike = [held for o in outcomes if (held := _bound_holds(o, shares)) is not None]
    said, holds = len(alike) / len(outcomes), f"{np.mean(alike):.1%}" if alike else "–"
    shares_of = f"{false:.1%} | {kept:.1%} | {shown:.0%} | {saved:.0%} | {inside:.1%} | {said:.0%} | {holds}"
    return f"| {scene} | {size} | {shares_of} |"


def _bound_holds(outcome: Outcome, truth: tuple[float, ...]) -> bool | None:
    """Return whether no model leads the one taken by more than is said; None if nothing is said of it.

    The last of the models counts as the smallest.
    """
    near = [k for k in outcome.left if outcome.means[outcome.leader] - outcome.means[k] <= MARGIN]
    if len(near) < 2:
        return None
    taken, others = near[-1], [k for k in outcome.left if k != near[-1]]
    ahead = max(outcome.pair(k, taken).difference.high for k in others)
    return all(truth[k] - truth[taken] <= ahead for k in others)


def _is_false(first: int, second: int, better: int | None, truth: tuple[float, ...]) -> bool:
    return better is not None and truth[better] <= truth[second if better == first else first]


def _raced(shares: tuple[float, ...], size: int, seed: int) -> Outcome:
    random = np.random.default_rng(seed)
    hardness = random.normal(size=size)
    own = random.normal(size=(len(shares), size))
    skill = math.sqrt(SHARED) * hardness + math.sqrt(1 - SHARED) * own
    right = skill < np.array([NormalDist().inv_cdf(share) for share in shares])[:, None]
    return race(right.astype(float), list(range(size)), True, seed)


def race(scores: np.ndarray, families: list[int], is_share: bool, seed: int) -> Outcome:
    """Run the race of `settle pick` with known scores (K, n)."""
    runner = Race([str(k) for k in range(len(scores))], families, is_share, seed=seed)
    first = True
    while rows := runner.next_rows(8 if first else 4):
        runner.record({k: scores[k][rows].tolist() for k in runner.left})
        first = False
    return runner.outcome()


# --- tasks of known truth ---


def make(folder: Path) -> None:
    """Trains three small models (code, the same tuned to one module, English prose), and cuts prompts for each task."""
    import torch

    from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
    from settle.formats.gguf import export_gguf
    from settle.model.architectures.llama import Llama

    torch.set_num_threads(1)
    code = inspect.getsource(inspect.getmodule(json.JSONDecoder)) + inspect.getsource(inspect.getmodule(textwrap.wrap))
    module, prose = inspect.getsource(inspect.getmodule(_ActionsContainer)), _prose()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = ByteBpeTokenizer.train([code, module, prose], 512, folder / "tokenizer")
    part = Llama(
        hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=tokenizer.vocab_size, max_position_embeddings=512,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    models = {}
    for name, text, begin, steps in (
        ("code", code, None, 500),
        ("tuned", module, "code", 900),
        ("prose", prose, None, 500),
    ):
        model = part.build(seed=0)
        if begin:
            model.load_state_dict(models[begin].state_dict())
        _train(model, torch.from_numpy(tokenizer.encode(text).astype("int64")), steps)
        models[name] = model
    files = {}
    for name, model in models.items():
        weights = {key: value.detach() for key, value in model.named_parameters()}
        for dtype in ("f32", "q8_0", "q4_0") if name == "tuned" else ("f32",):
            files[f"{name}-{dtype}"] = folder / f"{name}-{dtype}.gguf"
            export_gguf(part, weights, tokenizer, files[f"{name}-{dtype}"], dtype, {"base": True})
    generator = torch.Generator().manual_seed(0)
    for name, share in (("noisy", 0.3), ("ruined", 1.0)):
        damaged = {
            k: v.detach() + share * v.detach().std() * torch.randn(v.shape, generator=generator)
            for k, v in models["tuned"].named_parameters()
        }
        files[name] = export_gguf(part, damaged, tokenizer, folder / f"{name}.gguf", "f32", {"base": True})
    same = export_gguf(part, {k: v.detach() for k, v in models["tuned"].named_parameters()}, tokenizer,
                       folder / "again.gguf", "f32", {"base": True})  # fmt: skip
    for task, names, text in (
        ("a tuned model among untuned", ("tuned-f32", "code-f32", "prose-f32"), module),
        ("wrong language", ("prose-f32", "code-f32", "tuned-f32"), prose),
        ("quantized against full", ("tuned-f32", "tuned-q8_0", "tuned-q4_0"), module),
        ("damaged in rounding", ("tuned-f32", "noisy", "ruined"), module),
        ("the same model twice", ("tuned-f32", "again"), module),
    ):
        place = folder / task
        place.mkdir(exist_ok=True)
        (place / "models.json").write_text(json.dumps({n: str({**files, "again": same}[n]) for n in names}))
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _cut(text)))
        (place / "score").write_text(f"regex:{NEXT}")


def _prose() -> str:
    """English sentences: the documentation strings of Python's own modules."""
    import pydoc_data.topics

    return " ".join(" ".join(pydoc_data.topics.topics.values()).split())[:60_000]


def _train(model: object, ids: object, steps: int, length: int = 96, rows: int = 6) -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))  # type: ignore[attr-defined]
    random = torch.Generator().manual_seed(0)
    bounds = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps))
        starts = torch.randint(0, len(ids) - length - 1, (rows,), generator=random)  # type: ignore[arg-type]
        places = (starts[:, None] + torch.arange(length)).flatten()
        hidden = model(ids[places], bounds)  # type: ignore[operator, index]
        loss = torch.nn.functional.cross_entropy(hidden @ model.head.T, ids[places + 1])  # type: ignore[attr-defined, index]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _cut(text: str, number: int = 240, given: int = 60, wanted: int = 10) -> list[dict[str, str]]:
    """Prompts from all over a text, each with the characters that follow."""
    places = np.linspace(given, len(text) - wanted - 1, number).astype(int)
    rows = [{"prompt": text[p - given : p], "completion": text[p : p + wanted]} for p in places]
    return [row for row in rows if row["prompt"].strip() and re.search(NEXT, row["completion"])]


@dataclass(frozen=True)
class Scored:
    """Scores of the models on all prompts of a task, (K, n)."""

    names: list[str]
    scores: np.ndarray
    is_share: bool


def scored(place: Path) -> Scored:
    """Every model's answers to every prompt of a task, made once, and their scores."""
    from settle.base.event_log import Events
    from settle.experiment.arm import ModelArm
    from settle.experiment.run import run_race
    from settle.library.resolve import resolve_gguf

    files = json.loads((place / "models.json").read_text())
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    cases = [
        Case(i, row["completion"], ({"role": "user", "content": row["prompt"]},), prompt=row["prompt"])
        for i, row in enumerate(rows, 1)
    ]
    score = place / "score"
    task = named(score.read_text().strip()) if score.exists() else best_suited(cases)
    max_tokens = int((place / "tokens").read_text()) if (place / "tokens").exists() else 8
    arms = [ModelArm(resolve_gguf(Path(path)), 512, max_tokens, name) for name, path in files.items()]
    values = np.zeros((len(arms), len(cases)))
    families = list(range(len(cases)))
    for k, arm in enumerate(arms):  # one by one, so that nobody drops out
        finished = run_race(
            [arm], cases, lambda names: Race(names, families), lambda r, c: task.score(r.text, c), Events()
        )
        for row, reply in finished.replies[0].items():
            values[k, row] = task.score(reply.text, cases[row])
    return Scored(list(files), values, task.is_share)


def tasks(folder: Path, seeds: int, size: int) -> None:
    """Print for each task how often the pick on `size` prompts is right by the truth of all prompts."""
    print("| task | mean scores | right | no different | wrong | wrong “better” | answers saved |")
    print("|---|---|--:|--:|--:|--:|--:|")
    totals = []
    for place in sorted(p.parent for p in folder.glob("*/models.json")):
        known = scored(place)
        results = [_picked(known, size, seed) for seed in range(seeds)]
        totals += results
        means = ", ".join(f"{n} {m:.2f}" for n, m in zip(known.names, known.scores.mean(1), strict=True))
        print(f"| {place.name} | {means} | {_cells(results)} |", flush=True)
    print(f"| all | | {_cells(totals)} |")


def _picked(known: Scored, size: int, seed: int) -> tuple[str, bool, float]:
    """Return what a pick on `size` prompts says, whether any claim is false, and what was saved.

    It says right, no different or wrong.
    """
    rows = np.random.default_rng(1000 + seed).permutation(known.scores.shape[1])[:size]
    truth = known.scores.mean(1)
    outcome = race(known.scores[:, rows], list(range(len(rows))), known.is_share, seed)
    false = any(_is_false(p.first, p.second, p.better, tuple(truth)) for p in outcome.pairs)
    good = [k for k in outcome.left if truth[k] >= truth.max() - SLACK]
    kind = "wrong" if not good else "right" if len(outcome.left) == len(good) else "no different"
    return kind, false, outcome.saved


def _cells(results: list[tuple[str, bool, float]]) -> str:
    kinds = [kind for kind, _, _ in results]
    shares = " | ".join(f"{kinds.count(kind) / len(kinds):.0%}" for kind in ("right", "no different", "wrong"))
    return f"{shares} | {np.mean([f for _, f, _ in results]):.1%} | {np.mean([s for _, _, s in results]):.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    simulated = actions.add_parser("simulate")
    simulated.add_argument("--races", type=int, default=1000)
    simulated.add_argument("--sizes", type=int, nargs="+", default=[15, 40, 100, 400])
    for action in ("make", "tasks"):
        one = actions.add_parser(action)
        one.add_argument("folder", type=Path)
        one.add_argument("--seeds", type=int, default=40)
        one.add_argument("--size", type=int, default=40)
    asked = parser.parse_args()
    if asked.action == "simulate":
        simulate(asked.races, asked.sizes)
    elif asked.action == "make":
        make(asked.folder)
    else:
        tasks(asked.folder, asked.seeds, asked.size)


if __name__ == "__main__":
    main()
