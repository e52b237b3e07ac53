"""The card of a model that was made smaller: what it was, what it is, what it lost, and which tensor has which type."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from settle.base.run import write_atomic
from settle.shrink.session import Workbench


def write_card(path: Path, result: Mapping[str, Any], bench: Workbench) -> None:
    """Markdown, with the front matter that model hubs read. result: as in result.json."""
    write_atomic(path, card(result, bench))


def card(result: Mapping[str, Any], bench: Workbench) -> str:
    chosen, reference, gate = result["chosen"], result["reference"], result["gate"]
    d = chosen["divergence"]
    license = bench.source.license
    lines = ["---", f"base_model: {json.dumps(result['base']['name'])}", "base_model_relation: quantized"]
    lines += [f"license: {license}"] if license else []
    lines += ["library_name: gguf", "tags:", "- settle", "---", ""]
    lines += [
        f"# {result['name']}",
        "",
        f"{result['base']['name']} (sha256 `{result['base']['sha256'][:16]}…`), made smaller.",
    ]
    lines += ["", f"{result['why'][0].upper()}{result['why'][1:]}.", ""]
    lines += ["## What it costs", "", *_table(("", "before", "now"), _figures(reference, chosen)), ""]
    judged = f"{bench.material.name}, {d['tokens']:,} tokens in {d['windows']} windows that nothing was fitted to"
    lines += [f"Held-out text: {judged}; 95 % intervals.", ""]
    lines += ["| | |", "|---|--:|", f"| KL, nats per token | {_interval(d['kl'])} |"]
    lines += [f"| of single tokens, 99 in 100 below | {d['kl_99']:.3g} |", f"| the largest | {d['kl_max']:.3g} |"]
    lines += [f"| same likeliest token | {_interval(d['same_top'], percent=True)} |"]
    lines += [f"| the loss changes by | {_interval(d['rise'], percent=True)} |"]
    lines += [f"| KL as predicted | {chosen['predicted_kl']:.3g} |", ""] if chosen["predicted_kl"] else [""]
    lines += _vocabulary(result.get("vocabulary"))
    lines += _compared(result.get("comparison"))
    lines += ["## Check of the file", "", *_checked(gate), ""]
    lines += ["## Types", "", *_types(result["kinds"]), ""]
    return "\n".join(lines)


def _figures(reference: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[tuple[str, ...]]:
    d, a, b = chosen["divergence"], reference["footprint"], chosen["footprint"]
    rows = [
        ("size, MB", f"{reference['bytes'] / 1e6:.1f}", f"{chosen['bytes'] / 1e6:.1f}"),
        ("perplexity", f"{d['reference_perplexity']:.3f}", f"{d['perplexity']:.3f}"),
    ]
    if d["bits_per_byte"]:
        rows.append(("bits per byte", f"{d['reference_bits_per_byte']:.4f}", f"{d['bits_per_byte']:.4f}"))
    if a and b:
        rows += [
            ("tokens written a second", f"{a['speed']['median']:.1f}", f"{b['speed']['median']:.1f}"),
            ("tokens read a second", f"{a['prompt_speed']['median']:.0f}", f"{b['prompt_speed']['median']:.0f}"),
            ("memory, MB", f"{a['peak_bytes'] / 1e6:.0f}", f"{b['peak_bytes'] / 1e6:.0f}"),
            ("seconds to load", f"{a['load_seconds']['median']:.2f}", f"{b['load_seconds']['median']:.2f}"),
        ]
    return rows


def _checked(gate: Mapping[str, Any]) -> list[str]:
    return [
        f"Passed: {gate['texts_equal']} texts have equal ids, {gate['prompts_equal']} prompts are equal byte for byte,",
        f"{gate['greedy_tokens_equal']} of {gate['greedy_tokens']} greedy tokens are what the file's own weights give",
        "outside of llama.cpp.",
    ]


def _vocabulary(cut: Mapping[str, Any] | None) -> list[str]:
    if not cut:
        return []
    there, left = cut["tokens"]
    text = cut["text"]
    return [
        "## Vocabulary",
        "",
        f"{left:,} of {there:,} tokens are kept: those that the text needs, and what they are made of. The divergence",
        "above is from the model with those tokens. Against the whole model, on the same text, bits per byte go from",
        f"{_interval(text['reference_bits_per_byte'])} to {_interval(text['bits_per_byte'])}: "
        f"{_interval(text['rise'], percent=True)}.",
        "",
    ]


def _compared(comparison: Mapping[str, Any] | None) -> list[str]:
    return ["## On the task", "", comparison["headline"] + ".", ""] if comparison else []


def _types(kinds: Mapping[str, str]) -> list[str]:
    """How many tensors have each type, and the type of every one of them."""
    counted = Counter(kinds.values())
    lines = [", ".join(f"{number} tensors {kind}" for kind, number in counted.most_common()) + ".", ""]
    lines += ["<details><summary>every tensor</summary>", "", "| tensor | type |", "|---|---|"]
    return [*lines, *(f"| {name} | {kind} |" for name, kind in kinds.items()), "", "</details>"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def _interval(figure: Mapping[str, Any], percent: bool = False) -> str:
    def told(value: float) -> str:
        return f"{value:.2%}" if percent else f"{value:.3g}"

    low, high = figure["low"], figure["high"]
    return told(figure["value"]) + (f" ({told(low)} to {told(high)})" if low is not None else "")
