"""The gate: does the exported file, in llama.cpp, behave like the model that was trained?

A file can pass every structural check and still be broken (https://github.com/unslothai/unsloth/issues/7792), so
this compares behaviour: rendered prompts byte for byte, token ids, the distribution over the next token, and greedy
continuations. A failed gate hands over nothing and says where the first difference is.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.chat_template import render
from settle.base.errors import GateError, ResourceError
from settle.base.run import fsync_folder
from settle.formats.gguf import export_gguf
from settle.infer.engine import Engine
from settle.infer.sample import logprobs


@dataclass(frozen=True)
class Bars:
    """What a type of weights may cost.

    kl: mean KL(live ‖ file) in nats per token. logit_error: root mean square difference of log-probabilities over
    the root mean square of the live model's own spread; free of scale, so it also sees damage in a model whose
    distributions are still almost flat. tie: how far apart (nats) two tokens may be for a greedy difference to count
    as a near-tie.
    """

    kl: float
    logit_error: float
    tie: float


# bench/gate.py measures what sound exports need; the bars leave several times that.
BARS = {
    "f32": Bars(1e-4, 0.005, 0.02),
    "f16": Bars(1e-4, 0.005, 0.02),
    "bf16": Bars(1e-3, 0.02, 0.10),
    "q8_0": Bars(1e-2, 0.06, 0.30),
}


@dataclass(frozen=True)
class Effort:
    """How much is compared. The short one is part of every run; a bench or a person can ask for more."""

    num_texts: int = 150
    num_prompts: int = 6
    num_greedy: int = 24
    num_windows: int = 4
    window: int = 256  # tokens
    num_logprobs: int = 1 << 17  # log-probabilities fetched from llama.cpp; at about 5 µs each


ADVERSARIAL = (
    "", " ", "  ", "\n", "\n\n\n", "\t\t x", " \n \n ", "a  b   c    d", "trailing   ", "\r\n", "line\r\nline\r\n",
    "\r", "\u00a0\u2003\u3000x", "\x00", "a\x00b", "\x01\x02\x1b[31m\x7f", "\ufeffbom", "\u200b\u200d\u2060",
    "😀", "👩‍👩‍👧‍👦 family", "🇩🇪🇯🇵", "👍🏽", "e\u0301 é ﬁ ½ ²", "日本語のテキスト", "中文，标点。", "한국어 텍스트",
    "العربية", "עברית \u202eRTL\u202c", "हिन्दी क्षि", "ไทยไม่มีช่องว่าง", "Ελληνικά", "Русский текст", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "\U0010ffff", "it's we're I'LL they'd 'tis ''s", "'S'T'RE",
    "don’t", "1234567890 12,345.67 3.14e-10 0x1F", "٣٤٥ １２３ ⅷ",
    "def f(x):\n    return x[1:]  # ok\n\n\nclass A:\n\tpass\n", "a_b-c.d/e\\f|g", "!!!???...", "=====-----_____",
    "<html><body>&amp;</body></html>", "{\"a\": [1, 2, {\"b\": null}]}", "x" * 300, "ab" * 200, " " * 130, "\n" * 70,
    "<|end|>", "<|user|>hi<|end|>", "<|assistant|>", "<|im_start|>system", "<s>", "</s>", "<unk>", "<|endoftext|>",
    "<|end|", "|end|>", "< |end|>", "[INST] x [/INST]", "<0x0A>", "<|reserved_special_token_0|>", "▁x", "Ġx", "Ċ",
)  # fmt: skip

PROSE = (
    "The river was high that spring, and nobody crossed it before the end of May. When the water fell, the first to go "
    "over was a miller's boy with a letter in his hat; he had been told to ask for no answer and to wait for one. "
    "What he found on the other side was an empty house, a warm stove, and 3 cups on the table.\n\n"
    "He sat down. After an hour, he poured himself some tea.\n",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n",
    "# Notes\n\n- buy bread, 2 litres of milk (1.5 %), and a dozen eggs\n- call the office before 17:30\n\n"
    "| day | hours |\n|-----|-------|\n| Mon | 7.5   |\n| Tue | 8     |\n",
)

CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say “hi” 😀\n\n  twice "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b <|end|> 日本"},
        {"role": "user", "content": "{{ 1 + 1 }} {% x %}"},
    ],
)


SMALL_FILE = 400_000_000  # bytes
SEQUENCE_TEXTS = 200


class _Difference(Exception):
    """The first difference between the live model and the file."""


def run_gate(
    model: Any,
    tokenizer: Any,
    path: Path,
    held_out_texts: Sequence[str],
    dtype: str = "f16",
    effort: Effort = Effort(),
) -> dict[str, Any]:
    """Compare a live model with its GGUF file. Returns the figures, `passed`, and `first_difference` (or None).

    model: the live one, compared in fp32; held_out_texts: documents it was not trained on. Raises FormatError or
    EngineError when the file cannot even be loaded.
    """
    start = time.perf_counter()
    small = path.stat().st_size < SMALL_FILE
    figures: dict[str, Any] = {"dtype": dtype, "bars": vars(BARS[dtype]), "first_difference": None}
    texts = _pieces(held_out_texts, effort.num_texts)
    with _reference(model, small), Engine(path, threads=1 if small else None) as engine:
        try:
            figures["prompts_equal"] = _compare_prompts(tokenizer, engine)
            figures["texts_equal"] = _compare_ids(tokenizer, engine, [*ADVERSARIAL, *lookalikes(tokenizer), *texts])
            _compare_lists(tokenizer, engine.metadata)
            sequences = _sequences(tokenizer, held_out_texts, max(2, min(effort.window, engine.context // 2)))
            figures |= _compare_distributions(model, tokenizer, engine, sequences, BARS[dtype], effort)
            figures |= _compare_greedy(model, tokenizer, engine, sequences, BARS[dtype], effort)
        except _Difference as e:
            figures["first_difference"] = str(e)
    figures["passed"] = figures["first_difference"] is None
    figures["seconds"] = round(time.perf_counter() - start, 3)
    return figures


def export_through_gate(
    model: Any,
    part: Any,
    weights: Mapping[str, Any],
    tokenizer: Any,
    path: Path,
    held_out_texts: Sequence[str],
    dtype: str = "f16",
    metadata: Mapping[str, Any] | None = None,
    effort: Effort = Effort(),
) -> dict[str, Any]:
    """Write `path` (a .gguf) only if it passes the gate against the live model; the gate's figures.

    part, weights, tokenizer, metadata: as in `export_gguf`. Raises GateError, and then nothing lies at `path` that
    was not there before.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=".unproven-", dir=path.parent)
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror}", "choose another place") from None
    with folder as beside:
        unproven = Path(beside) / path.name
        export_gguf(part, weights, tokenizer, unproven, dtype, metadata)
        figures = run_gate(model, tokenizer, unproven, held_out_texts, dtype, effort)
        require(figures, path)
        unproven.replace(path)
        fsync_folder(path.parent)
    return figures


@contextlib.contextmanager
def _reference(model: Any, small: bool) -> Iterator[None]:
    """The live model in fp32, whatever it was trained in, and one torch thread for a small one: threads that wait for
    each other spinning, torch's and llama.cpp's, are ten times slower than one as soon as the machine is shared."""
    import torch

    num_threads, compute_dtype = torch.get_num_threads(), model.compute_dtype
    torch.set_num_threads(1 if small else num_threads)
    model.compute_dtype = torch.float32
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        model.compute_dtype = compute_dtype


def held_out_texts(store: Any, tokenizer: Any, most_tokens: int = 60_000) -> list[str]:
    """Documents of a token store as text, evenly spread: about `most_tokens` in all, at least 8 documents if it has
    them, none longer than an eighth of the whole."""
    number = store.num_documents
    stride = min(max(1, round(store.num_tokens / most_tokens)), max(1, number // 8))
    return [tokenizer.decode(store.document(i)[:-1][: most_tokens // 8]) for i in range(0, number, stride)][:2000]


def require(figures: Mapping[str, Any], path: Path) -> None:
    """Raises GateError with the first difference unless the gate was passed."""
    if not figures["passed"]:
        raise GateError(
            f"{path.name} does not behave like the trained model: {figures['first_difference']}",
            "nothing was handed over; the weights are safe in the run, and this is worth a bug report",
        )


def lookalikes(tokenizer: Any) -> list[str]:
    """Texts that contain the tokenizer's own special tokens, whole and broken."""
    out = []
    for token in tokenizer.special_tokens:
        out += [token, f"x{token}y", f" {token} ", token * 2, token[:-1], token[1:], token.upper()]
    return out


def _pieces(texts: Sequence[str], number: int) -> list[str]:
    """`number` pieces of up to 400 characters, evenly spread, cut anywhere (in mid-word too)."""
    pieces = [t[i : i + 400] for t in texts for i in range(0, len(t), 400)]
    return _spread(pieces, number)


def _sequences(tokenizer: Any, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Ids of held-out documents (and of some prose, for there may be few) in pieces of at most `longest`: the full
    ones, or the longer half if fewer are full."""
    pieces: list[list[int]] = []
    for text in [*texts[:SEQUENCE_TEXTS], *PROSE]:
        ids = tokenizer.encode(text[: longest * 64]).tolist()
        pieces += [ids[i : i + longest] for i in range(0, len(ids), longest)]
    pieces = [ids for ids in pieces if len(ids) >= 2]
    pieces.sort(key=len, reverse=True)
    full = sum(len(ids) == len(pieces[0]) for ids in pieces)
    return pieces[: max(full, -(-len(pieces) // 2))]


def _spread(items: Sequence[Any], number: int) -> list[Any]:
    """`number` of the items at most, evenly spread."""
    return [items[i * len(items) // number] for i in range(number)] if len(items) > number else list(items)


def _compare_lists(tokenizer: Any, metadata: Mapping[str, Any]) -> None:
    """The file's vocabulary itself: most of it occurs in no text that could be compared."""
    lists = {"tokens": tokenizer.tokens, "token_type": tokenizer.token_types, "merges": tokenizer.merges}
    for key, ours in lists.items():
        theirs = metadata.get(f"tokenizer.ggml.{key}", [])
        at = _first(ours, theirs)
        if at < len(ours):
            raise _Difference(f"{key} differ at {at}: {ours[at]!r} here, {theirs[at : at + 1]} in the file")
    numbers = {"add_bos_token": tokenizer.add_bos, "eos_token_id": tokenizer.eos_id}
    for key, value in numbers.items():
        if metadata.get(f"tokenizer.ggml.{key}") != value:
            raise _Difference(f"{key} is {value} here, {metadata.get(f'tokenizer.ggml.{key}')} in the file")


def _compare_prompts(tokenizer: Any, engine: Engine) -> int:
    if not tokenizer.chat_template:
        return 0
    tokens = {
        "bos_token": tokenizer.tokens[tokenizer.bos_id],
        "eos_token": tokenizer.tokens[tokenizer.eos_id],
    }
    for messages in CONVERSATIONS:
        ours = render(tokenizer.chat_template, messages, add_generation_prompt=True, **tokens)
        theirs = engine.render(messages)
        if ours != theirs:
            at = _first(ours, theirs)
            raise _Difference(
                f"rendered prompts differ at character {at}: {ours[at : at + 20]!r} here, "
                f"{theirs[at : at + 20]!r} in llama.cpp, for {messages}"
            )
        _compare_ids(tokenizer, engine, [ours], specials=True)
    return len(CONVERSATIONS)


def _compare_ids(tokenizer: Any, engine: Engine, texts: Sequence[str], specials: bool = False) -> int:
    for text in texts:
        ours = [int(i) for i in tokenizer.encode(text, specials)]
        theirs = engine.tokenize(text, special=specials)
        if ours != theirs:
            at = _first(ours, theirs)
            raise _Difference(
                f"token ids differ at {at}: {ours[at : at + 5]} here, {theirs[at : at + 5]} in llama.cpp, "
                f"for the text {text[:80]!r}"
            )
    return len(texts)


def _compare_distributions(
    model: Any, tokenizer: Any, engine: Engine, sequences: list[list[int]], bars: Bars, effort: Effort
) -> dict[str, Any]:
    """KL and logit error at positions spread over the longest held-out sequences, the last one included."""
    windows = _spread(sequences, effort.num_windows)
    each = max(2, effort.num_logprobs // engine.num_vocab // len(windows))
    divergences, errors, spreads, agree, worst = [], [], [], [], (-1.0, "")
    for number, ids in enumerate(windows):
        positions = np.unique(np.linspace(0, len(ids) - 1, min(each, len(ids))).round().astype(int)).tolist()
        live = logprobs(model, ids, positions).cpu().double().numpy()
        for row, position in zip(live, positions, strict=True):
            file = _dense(engine.next_token_logprobs(ids[: position + 1]), len(row))
            divergence = float(np.sum(np.exp(row) * (row - file)))
            divergences.append(max(divergence, 0.0))
            errors.append(float(np.mean((row - file - np.mean(row - file)) ** 2)))
            spreads.append(float(np.var(row)))
            agree.append(bool(row.argmax() == file.argmax()))
            worst = max(worst, (divergence, f"token {position} of held-out sequence {number}"))
    figures = {
        "positions": len(divergences),
        "kl": float(np.mean(divergences)),
        "kl_max": float(np.max(divergences)),
        "logit_error": float(np.sqrt(np.mean(errors) / max(np.mean(spreads), 1e-12))),
        "top_token_equal": float(np.mean(agree)),
    }
    # written so that NaN fails
    if not (figures["kl"] <= bars.kl and figures["logit_error"] <= bars.logit_error):
        raise _Difference(
            f"the distributions differ: KL {figures['kl']:.2e} nats per token (bar {bars.kl:.0e}), logit error "
            f"{figures['logit_error']:.2e} (bar {bars.logit_error:.0e}), the most at {worst[1]}"
        )
    return figures


def _compare_greedy(
    model: Any, tokenizer: Any, engine: Engine, sequences: list[list[int]], bars: Bars, effort: Effort
) -> dict[str, Any]:
    """Greedy continuations are equal up to the first near-tie; a difference elsewhere fails.

    The live model is shown llama.cpp's continuation in one pass: as long as its own first choice is the next token
    there, its continuation is the same, and the first other choice is the first difference.
    """
    longest = min(16, engine.context // 2)
    prompts = [ids[:longest] for ids in _spread(sequences, effort.num_prompts)]
    number = min(effort.num_greedy, engine.context - longest)
    compared = equal = ties = 0
    for row, prompt in enumerate(prompts):
        theirs = engine.greedy(prompt, number)
        # llama.cpp ends at the end of a text or a turn, and leaves that token out; either is right then
        ended = [tokenizer.eos_id, tokenizer.turn_end_id] if len(theirs) < number else []
        last = len(prompt) + len(theirs) - (0 if ended else 1)
        live = logprobs(model, prompt + theirs, range(len(prompt) - 1, last)).cpu().numpy()
        for at, distribution in enumerate(live):
            choices = theirs[at : at + 1] or ended
            ours, gap = int(distribution.argmax()), float(distribution.max() - distribution[choices].max())
            compared += 1
            if ours in choices:
                equal += 1
            elif gap <= bars.tie:
                ties += 1
                break
            else:
                raise _Difference(
                    f"greedy continuations differ at token {at} of prompt {row} "
                    f"({tokenizer.decode(prompt)[-40:]!r}): {tokenizer.tokens[ours]!r} here, "
                    f"{tokenizer.tokens[choices[0]]!r} in llama.cpp, {gap:.3f} nats apart (bar {bars.tie})"
                )
    return {
        "greedy_prompts": len(prompts),
        "greedy_tokens": compared,
        "greedy_tokens_equal": equal,
        "greedy_near_ties": ties,
    }


def _dense(sparse: Mapping[int, float], size: int) -> np.ndarray:
    out = np.full(size, -np.inf)
    for token, value in sparse.items():
        out[token] = value
    return out


def _first(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Index of the first difference; the shorter length when one begins with the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
