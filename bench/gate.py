"""How a file in llama.cpp behaves beside the live model it was exported from, and what the gate catches.

    python bench/gate.py RUN        a finished run of settle's

Per type of weights: token ids on at least 5,000 held-out, adversarial and random texts; KL and logit error over
held-out tokens; greedy continuations of 64 tokens for 50 prompts, up to the first near-tie. Then exports broken on
purpose: each must be refused. Prints a Markdown table.
"""

import argparse
import copy
import random
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from settle.base.files import home
from settle.base.run import Run
from settle.data.store import TokenStore
from settle.evaluate.gate.behaviour import Effort
from settle.evaluate.gate.export import LiveModel, load
from settle.evaluate.gate.gate import Reference, held_out_texts, run_gate
from settle.formats import gguf

THOROUGH = Effort(num_texts=7000, num_prompts=50, num_greedy=64, num_windows=24, num_logprobs=1 << 20)
NUM_RANDOM = 3000


def random_texts(number: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 60 characters, each drawn from a few alphabets mixed: any plane of Unicode, ASCII, whitespace."""
    rng = random.Random(seed)
    anything = [c for c in map(chr, range(0x20000)) if unicodedata.category(c) != "Cs"]
    alphabets = [
        [chr(i) for i in range(128)],
        [c for c in anything if unicodedata.category(c)[0] == "L"],
        [c for c in anything if unicodedata.category(c)[0] == "N"],
        [c for c in anything if unicodedata.category(c)[0] in "MSPC"],
        list(" \t\n\r\x0b\x0c\x85\u00a0\u2028\u3000"),
        ["'s", "'re", "'LL", "<|im_end|>", "<|", "|>", "\r\n", "   "],
        anything,
    ]
    return ["".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randrange(1, 60))) for _ in range(number)]


def exports(live: LiveModel, texts: list[str], folder: Path) -> Iterator[str]:
    """One row a type of weights."""
    columns = "type", "MB", "texts with equal ids", "KL, nats per token", "KL, most", "logit error", "greedy equal"
    yield "| " + " | ".join((*columns, "near-ties", "s")) + " |"
    yield "|---" * 9 + "|"
    for dtype in ("f32", "f16", "bf16", "q8_0"):
        path = gguf.export_gguf(live.part, live.weights, live.tokenizer, folder / "live.gguf", dtype)
        found = run_gate(Reference(live.model, live.tokenizer, texts), path, dtype, THOROUGH)
        assert found["passed"], found["first_difference"]
        yield (
            f"| {dtype} | {path.stat().st_size / 1e6:.1f} | {found['texts_equal']:,} of {found['texts_equal']:,} "
            f"| {found['kl']:.1e} ({found['positions']:,}) | {found['kl_max']:.1e} | {found['logit_error']:.1e} "
            f"| {found['greedy_tokens_equal']:,} of {found['greedy_tokens']:,} | {found['greedy_near_ties']} "
            f"| {found['seconds']:.1f} |"
        )


def broken(live: LiveModel) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield exports that load and look right and are wrong: a name, and changed arguments of `export_gguf`."""
    weights, tokenizer, part = live.weights, live.tokenizer, live.part
    last = part.num_hidden_layers - 1

    def changed(**values: Any) -> Any:
        other = copy.copy(tokenizer)
        for key, value in values.items():
            setattr(other, key, value)
        return other

    for name in ("model.norm", f"model.layers.{last}.mlp.down_proj", "model.layers.0.self_attn.v_proj"):
        yield f"{name} x 1.05", {"weights": weights | {f"{name}.weight": weights[f"{name}.weight"] * 1.05}}
    first, second = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, last))
    yield "queries of two layers swapped", {"weights": weights | {first: weights[second], second: weights[first]}}
    yield "rope_theta doubled", {"part": part.model_copy(update={"rope_theta": part.rope_theta * 2})}
    yield "pre-tokenizer llama-bpe", {"tokenizer": changed(pre="llama-bpe")}
    yield "pre-tokenizer default", {"tokenizer": changed(pre="default")}
    for at in (1, len(tokenizer.merges) // 2, len(tokenizer.merges) - 1):
        merges = list(tokenizer.merges)
        merges[at - 1], merges[at] = merges[at], merges[at - 1]
        yield f"merges {at - 1} and {at} swapped", {"tokenizer": changed(merges=merges)}
    yield "a merge missing", {"tokenizer": changed(merges=tokenizer.merges[:-1])}
    yield "special tokens as text", {"tokenizer": changed(token_types=[1] * len(tokenizer.token_types))}
    template = tokenizer.chat_template.replace("assistant\\n", "assistant")
    yield "template without a line feed", {"tokenizer": changed(chat_template=template)}
    loop, said = "for message in messages", "message['content']"
    for what, old, new in (
        ("turns after the third dropped", loop, f"{loop}[:3]"),
        ("only the last seven turns kept", loop, f"{loop}[-7:]"),
        ("messages cut at 200 characters", said, f"{said}[:200]"),
        ("turns of a tool dropped", loop, f"{loop} if message['role'] != 'tool'"),
    ):
        if old in tokenizer.chat_template:
            other = changed(chat_template=tokenizer.chat_template.replace(old, new))
            yield f"template: {what}", {"tokenizer": other}
    name = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    noise = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    stale = weights[name] + 0.003 * noise * weights[name].norm() / noise.norm()
    yield "a head 0.3 % stale", {"weights": weights | {name: stale}}


def refusals(live: LiveModel, texts: list[str], folder: Path) -> Iterator[str]:
    """One row an export broken on purpose."""
    yield "| broken on purpose | refused | first difference |"
    yield "|---|---|---|"
    family: Any = type(live.part)
    ordered = family.to_gguf
    cases = [("queries and keys not interleaved", {}), *broken(live)]
    for name, changes in cases:
        arguments = {"part": live.part, "weights": live.weights, "tokenizer": live.tokenizer} | changes
        if not changes:
            family.to_gguf = lambda part, name, values: values
        try:
            path = gguf.export_gguf(path=folder / "broken.gguf", **arguments)
        finally:
            family.to_gguf = ordered
        found = run_gate(Reference(live.model, live.tokenizer, texts), path)
        why = str(found["first_difference"]).replace("|", "\\|").replace("\n", " ")[:90]
        yield f"| {name} | {'no' if found['passed'] else 'yes'} | {why} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    run = Run.find(parser.parse_args().run)
    live = load(run.out / "hf")
    store = TokenStore(home() / "tokens" / run.read("plan.json")["corpus"] / "held_out")
    texts = held_out_texts(store, live.tokenizer, 400_000)
    print(f"{run.name}: {live.part.num_parameters:,} parameters, {live.tokenizer.vocab_size:,} entries\n")
    with tempfile.TemporaryDirectory() as folder:
        # random texts are compared for their ids only: they are too short to be held-out sequences that matter
        for line in exports(live, texts + random_texts(NUM_RANDOM), Path(folder)):
            print(line, flush=True)
        print()
        for line in refusals(live, texts, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
