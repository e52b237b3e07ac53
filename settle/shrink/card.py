"""The card of a model that was made smaller: what it was, what it is, what it lost, and which tensor has which type."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from settle.base.files import JsonObject, write_atomic
from settle.base.statistics import Interval
from settle.evaluate.divergence import TextLoss
from settle.shrink.candidates import ShrinkCandidate
from settle.shrink.session import Session


@dataclass(frozen=True)
class CardFacts:
    """What the card of a smaller model says.

    why: the result in a sentence. text_loss: where tokens were removed. headline: of a comparison on the task. network:
    what left this machine.
    """

    name: str
    why: str
    reference: ShrinkCandidate
    chosen: ShrinkCandidate
    gate: JsonObject
    text_loss: TextLoss | None = None
    headline: str = ""
    network: str = ""


def write_card(path: Path, facts: CardFacts, session: Session) -> None:
    """Markdown, with the front matter that model hubs read."""
    write_atomic(path, card(facts, session))


def card(facts: CardFacts, session: Session) -> str:
    chosen, whole = facts.chosen, session.whole
    d = chosen.measured
    lines = ["---", f"base_model: {json.dumps(whole.name)}", "base_model_relation: quantized"]
    lines += [f"license: {whole.license}"] if whole.license else []
    lines += ["library_name: gguf", "tags:", "- settle", "---", ""]
    lines += [f"# {facts.name}", "", f"{whole.name} (sha256 `{whole.source.sha256[:16]}…`), made smaller.", ""]
    lines += [f"{facts.why[0].upper()}{facts.why[1:]}.", ""]
    lines += ["## What it costs", "", "|  | before | now |", "|---|--:|--:|"]
    lines += [*(f"| {' | '.join(row)} |" for row in _figures(facts.reference, chosen)), ""]
    text = f"{session.model.data.name}, {d.tokens:,} tokens in {d.windows} windows that nothing was fitted to"
    lines += [f"Held-out text: {text}; 95 % intervals.", ""]
    lines += ["| | |", "|---|--:|", f"| KL, nats per token | {_interval(d.kl)} |"]
    lines += [f"| of single tokens, 99 in 100 below | {d.kl_99:.3g} |", f"| the largest | {d.kl_max:.3g} |"]
    lines += [f"| same most likely token | {_interval(d.same_top, percent=True)} |"]
    lines += [f"| change of the loss | {_interval(d.rise, percent=True)} |"]
    lines += [f"| KL as predicted | {chosen.predicted:.3g} |", ""] if chosen.predicted else [""]
    lines += _vocabulary(session.cut, facts.text_loss)
    lines += ["## On the task", "", facts.headline + ".", ""] if facts.headline else []
    lines += ["## Check of the file", "", *_checks(facts.gate), ""]
    lines += ["## What left this machine", "", facts.network, ""] if facts.network else []
    lines += ["## Types", "", *_types(chosen.kinds), ""]
    return "\n".join(lines)


def _figures(reference: ShrinkCandidate, chosen: ShrinkCandidate) -> list[tuple[str, str, str]]:
    d, a, b = chosen.measured, reference.footprint, chosen.footprint
    rows = [
        ("size, MB", f"{reference.num_bytes / 1e6:.1f}", f"{chosen.num_bytes / 1e6:.1f}"),
        ("perplexity", f"{d.reference_perplexity:.3f}", f"{d.perplexity:.3f}"),
    ]
    if d.bits_per_byte and d.reference_bits_per_byte:
        rows.append(("bits per byte", f"{d.reference_bits_per_byte:.4f}", f"{d.bits_per_byte:.4f}"))
    if a and b:
        rows += [
            ("tokens written per second", f"{a.speed.median:.1f}", f"{b.speed.median:.1f}"),
            ("tokens read per second", f"{a.prompt_speed.median:.0f}", f"{b.prompt_speed.median:.0f}"),
            ("memory, MB", f"{(a.peak_bytes or 0) / 1e6:.0f}", f"{(b.peak_bytes or 0) / 1e6:.0f}"),
            ("seconds to load", f"{a.load_seconds.median:.2f}", f"{b.load_seconds.median:.2f}"),
        ]
    return rows


def _checks(gate: JsonObject) -> list[str]:
    return [
        f"Passed: {gate['texts_equal']} texts have equal ids, {gate['prompts_equal']} prompts are equal byte for byte,",
        f"{gate['greedy_tokens_equal']} of {gate['greedy_tokens']} greedy tokens are what the file's own weights give",
        "outside of llama.cpp.",
    ]


def _vocabulary(cut: tuple[int, int] | None, loss: TextLoss | None) -> list[str]:
    if cut is None or loss is None:
        return []
    return [
        "## Vocabulary",
        "",
        f"{cut[1]:,} of {cut[0]:,} tokens are kept: those that the text needs, and what they are made of. The",
        "divergence above is from the model with those tokens. Compared with the whole model, on the same text, bits",
        f"per byte go from {_interval(loss.reference_bits_per_byte)} to {_interval(loss.bits_per_byte)}: "
        f"{_interval(loss.rise, percent=True)}.",
        "",
    ]


def _types(kinds: Mapping[str, str]) -> list[str]:
    """How many tensors have each type, and the type of every one of them."""
    counts = Counter(kinds.values())
    lines = [", ".join(f"{number} tensors {kind}" for kind, number in counts.most_common()) + ".", ""]
    lines += ["<details><summary>every tensor</summary>", "", "| tensor | type |", "|---|---|"]
    return [*lines, *(f"| {name} | {kind} |" for name, kind in kinds.items()), "", "</details>"]


def _interval(figure: Interval, percent: bool = False) -> str:
    def text(value: float) -> str:
        return f"{value:.2%}" if percent else f"{value:.3g}"

    bounds = f" ({text(figure.low)} to {text(figure.high)})" if figure.is_bounded else ""
    return text(figure.value) + bounds
