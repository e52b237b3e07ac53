"""What the gate compares: a live model with its file in llama.cpp, from the rendered prompt to the greedy answer.

Every comparison raises `Difference` with the first place where the two part. V vocabulary.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from settle.base.chat_template import ChatTemplate, TemplateFailure
from settle.base.tokenizer import Tokenizer
from settle.evaluate.compare.cases import spread
from settle.formats import Metadata
from settle.formats.gguf.metadata import text as text_of
from settle.formats.gguf.types import Bars
from settle.infer.engine import Engine
from settle.infer.live_sampling import logprobs
from settle.model.decoder import Decoder
from settle.model.layers.decoder_layer import Selector
from settle.train.proof import routers

Figures = dict[str, Any]  # what the gate found, as result.json holds it
Conversation = list[dict[str, str]]
LONG_MESSAGE = "A sentence of a long message, and it ends here. " * 170  # 8,000 characters: a template may cut it
CONVERSATIONS: tuple[Conversation, ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say “hi” 😀\n\n  twice "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b <|end|> 日本"},
        {"role": "user", "content": "{{ 1 + 1 }} {% x %}"},
    ],
    [
        {"role": ("user", "assistant")[turn % 2], "content": LONG_MESSAGE if turn == 4 else f"turn {turn + 1}"}
        for turn in range(9)
    ],
)


@dataclass(frozen=True)
class Effort:
    """How much is compared. The short one is part of every run; a bench or a person can ask for more."""

    num_texts: int = 150
    num_prompts: int = 6
    num_greedy: int = 24
    num_windows: int = 4
    window: int = 256  # tokens
    num_logprobs: int = 1 << 17  # log-probabilities fetched from llama.cpp; at about 5 µs each
    most_likely: int = 1 << 12  # tokens compared one by one; those of a larger vocabulary are compared as one
    conversations: tuple[Conversation, ...] = CONVERSATIONS  # rendered here and there


BRIEF = Effort()

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

LIKELY = 20  # tokens of a position among which a greedy choice may fall
TIE_ERRORS = 4.0  # standard deviations of a difference of two log-probabilities that may change a greedy choice
TEMPLATE = "tokenizer.chat_template"  # the key of a file
MOST_SHOWN = 400  # characters of a conversation in a message
UNDERFLOW = -80.0  # llama.cpp's probabilities are float32: smaller ones are zero there
# llama.cpp treats all of these as ends of an answer, whichever of them the file names.
ENDINGS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>", "</s>",
    "<eos>", "<EOT>", "<｜end▁of▁sentence｜>",
)  # fmt: skip


class Difference(Exception):
    """The first difference between the live model and the file, and the figures that showed it."""

    def __init__(self, what: str, figures: Figures | None = None) -> None:
        super().__init__(what)
        self.figures = dict(figures or {})


def lookalikes(tokenizer: Tokenizer) -> list[str]:
    """Texts that contain the tokenizer's own special tokens, whole and broken; of many, some."""
    out = []
    for token in spread(list(tokenizer.special_tokens), 40):
        out += [token, f"x{token}y", f" {token} ", token * 2, token[:-1], token[1:], token.upper()]
    return out


def opening(tokenizer: Tokenizer) -> list[int]:
    """Return the token that the model expects before every text, or none."""
    return [int(tokenizer.bos_id)] if tokenizer.add_bos and tokenizer.bos_id is not None else []


def compare_lists(tokenizer: Tokenizer, metadata: Metadata) -> None:
    """Compare the file's vocabulary itself: most of it occurs in no text that could be compared."""
    lists: dict[str, Sequence[object]] = {
        "tokens": tokenizer.tokens,
        "token_type": tokenizer.token_types,
        "merges": tokenizer.merges,
    }
    for key, ours in lists.items():
        listed = metadata.get(f"tokenizer.ggml.{key}")
        theirs = listed if isinstance(listed, list) else []
        at = first_difference(ours, theirs)
        if at < len(ours):
            raise Difference(f"{key} differ at {at}: {ours[at]!r} here, {theirs[at : at + 1]} in the file")
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    if eos != tokenizer.eos_id:
        raise Difference(f"eos_token_id is {tokenizer.eos_id} here, {eos} in the file")


def compare_opening(tokenizer: Tokenizer, engine: Engine) -> None:
    """Check that llama.cpp opens a text as the model expects it."""
    ours, theirs = opening(tokenizer), engine.tokenize("", opening=True)
    if ours == theirs:
        return
    if not theirs:
        token = tokenizer.tokens[ours[0]]
        raise Difference(
            f"the opening token is missing: llama.cpp puts no {token!r} before a text, and the model was "
            "trained with it (tokenizer.ggml.add_bos_token)"
        )
    raise Difference(f"texts are opened with the ids {ours} here, {theirs} in llama.cpp (tokenizer.ggml.add_bos_token)")


def compare_prompts(tokenizer: Tokenizer, engine: Engine, conversations: Sequence[Conversation]) -> int:
    """Conversations through the template here and there, byte for byte, then as ids; how many were equal.

    What the template refuses here is left out: llama.cpp may rewrite such a conversation before it renders it. An
    opening token that llama.cpp adds by itself is written by no side.
    """
    if not tokenizer.chat_template:
        return 0
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    tokens = {key: "" if i is None else tokenizer.tokens[i] for key, i in ids.items()}
    template = ChatTemplate(tokenizer.chat_template, tokens["bos_token"], tokens["eos_token"])
    added = tokens["bos_token"] if opening(tokenizer) else ""
    compared = 0
    for messages in conversations:
        try:
            ours = template.render(messages, add_generation_prompt=True).removeprefix(added)
        except TemplateFailure:
            continue
        theirs = engine.render(messages).removeprefix(added)
        if ours != theirs:
            at = first_difference(ours, theirs)
            raise Difference(
                f"rendered prompts differ at character {at}: {ours[at : at + 20]!r} here, "
                f"{theirs[at : at + 20]!r} in llama.cpp, for {_shown(messages)}: the chat template is another one"
            )
        compare_ids(tokenizer, engine, [ours], specials=True)
        compared += 1
    if not compared:
        raise Difference("the chat template refuses every conversation, even a single question")
    return compared


def compare_template(tokenizer: Tokenizer, metadata: Metadata) -> None:
    """Compare the text of the chat template: no number of conversations shows that two templates are the same."""
    ours, theirs = tokenizer.chat_template or "", text_of(metadata, TEMPLATE) or ""
    if ours != theirs:
        at = first_difference(ours, theirs)
        raise Difference(
            f"the text of the chat template differs at character {at}: {ours[at : at + 40]!r} here, "
            f"{theirs[at : at + 40]!r} in the file: the chat template is another one"
        )


def compare_ids(tokenizer: Tokenizer, engine: Engine, texts: Sequence[str], specials: bool = False) -> int:
    """Compare the ids of every text; return how many were equal."""
    for text in texts:
        ours = [int(i) for i in tokenizer.encode(text, specials)]
        theirs = engine.tokenize(text, special=specials)
        if ours != theirs:
            at = first_difference(ours, theirs)
            raise Difference(
                f"token ids differ at {at}: {ours[at : at + 5]} here, {theirs[at : at + 5]} in llama.cpp, "
                f"for the text {text[:80]!r}"
            )
    return len(texts)


def compare_distributions(
    model: Decoder, engine: Engine, sequences: list[list[int]], bars: Bars, effort: Effort
) -> Figures:
    """Compare distributions at positions spread over the longest held-out sequences, the last one included.

    KL, logit error, and likely_error: root mean square difference (nats) of the log-probabilities of the likeliest
    tokens.
    """
    windows = spread(sequences, effort.num_windows)
    top = min(engine.num_vocab, effort.most_likely)
    each = max(2, effort.num_logprobs // top // len(windows))
    divergences, errors, likely, spreads, agree, worst = [], [], [], [], [], (-1.0, "")
    for number, ids in enumerate(windows):
        positions = np.unique(np.linspace(0, len(ids) - 1, min(each, len(ids))).round().astype(int)).tolist()
        live = logprobs(model, ids, positions).cpu().double().numpy()
        for row, position in zip(live, positions, strict=True):
            theirs = engine.next_token_logprobs(ids[: position + 1], None if top == engine.num_vocab else top)
            ours, file, rest = _aligned(row, theirs)
            divergence = float(np.sum(np.exp(ours) * (ours - file))) + rest
            divergences.append(max(divergence, 0.0))
            squares = (ours - file - np.mean(ours - file)) ** 2
            errors.append(float(np.mean(squares)))
            likely.append(float(np.mean(squares[np.argsort(-ours)[:LIKELY]])))
            spreads.append(float(np.var(ours)))
            agree.append(bool(row.argmax() == max(theirs, key=lambda i: theirs[i])))
            worst = max(worst, (divergence, f"token {position} of held-out sequence {number}"))
    figures = {
        "positions": len(divergences),
        "kl": float(np.mean(divergences)),
        "kl_max": float(np.max(divergences)),
        "logit_error": float(np.sqrt(float(np.mean(errors)) / max(float(np.mean(spreads)), 1e-12))),
        "likely_error": math.sqrt(float(np.mean(likely))),
        "top_token_equal": float(np.mean(agree)),
    }
    # written so that NaN fails
    if not (figures["kl"] <= bars.kl and figures["logit_error"] <= bars.logit_error):
        raise Difference(
            f"the distributions differ: KL {figures['kl']:.2e} nats per token (bar {bars.kl:.0e}), logit error "
            f"{figures['logit_error']:.2e} (bar {bars.logit_error:.0e}), the most at {worst[1]}",
            figures,
        )
    return figures


def misrouted(model: Decoder, sequences: list[list[int]], noise: float, effort: Effort) -> tuple[float, float]:
    """Return the logit error that changed choices of experts alone make, and the share of choices that change.

    noise: relative error of the chances by which routers choose; what they weigh the chosen experts by stays exact.
    """
    drawn, changed = torch.Generator().manual_seed(0), []

    def choose(router: Selector, given: tuple[Tensor, ...], out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        chances, *bias = given
        off = chances * (1 + noise * torch.randn(chances.shape, generator=drawn).to(chances))
        chosen = router.forward(off, *bias)[1]
        changed.append(float((chosen.sort().values != out[1].sort().values).any(-1).float().mean()))
        return router.taken(chances, chosen), chosen

    errors, spreads = [], []
    for ids in spread(sequences, effort.num_windows):
        own = logprobs(model, ids, range(len(ids)))
        with contextlib.ExitStack() as hooks:
            for router in routers(model).values():
                hooks.callback(router.register_forward_hook(choose).remove)
            off = logprobs(model, ids, range(len(ids))) - own
        errors.append(float((off - off.mean(1, keepdim=True)).square().mean()))
        spreads.append(float(own.var(1).mean()))
    error = math.sqrt(sum(errors) / max(sum(spreads), 1e-12))
    return error, sum(changed) / max(1, len(changed))


def compare_greedy(
    model: Decoder,
    tokenizer: Tokenizer,
    engine: Engine,
    sequences: list[list[int]],
    bars: Bars,
    effort: Effort,
    error: float = 0.0,
) -> Figures:
    """Check that greedy continuations are equal up to the first near-tie; a difference elsewhere fails.

    error: how far apart the log-probabilities of likely tokens are (nats), which may make a near-tie wider than the bar
    says.

    The live model is shown llama.cpp's continuation in one pass: as long as its own first choice is the next token
    there, its continuation is the same, and the first other choice is the first difference.
    """
    # of chats, as far as they are not all the same: behind what the template begins with
    longest = min(64, engine.context // 2)
    prompts = [ids[: max(1, min(longest, len(ids) // 2))] for ids in spread(sequences, effort.num_prompts)]
    number = min(effort.num_greedy, engine.context - longest)
    most = max(bars.tie, TIE_ERRORS * math.sqrt(2) * error)
    compared = equal = ties = 0
    answers: list[dict[str, list[int]]] = []
    for row, prompt in enumerate(prompts):
        theirs = engine.greedy(prompt, number)
        # llama.cpp ends at the end of a text or a turn, and may leave that token out; either end is right then
        ended = _endings(tokenizer) if len(theirs) < number else []
        theirs = theirs[:-1] if theirs and theirs[-1] in ended else theirs
        answers.append({"prompt": prompt, "answer": theirs})
        last = len(prompt) + len(theirs) - (0 if ended else 1)
        live = logprobs(model, prompt + theirs, range(len(prompt) - 1, last)).cpu().numpy()
        for at, distribution in enumerate(live):
            choices = theirs[at : at + 1] or ended
            ours, gap = int(distribution.argmax()), float(distribution.max() - distribution[choices].max())
            compared += 1
            if ours in choices:
                equal += 1
            elif gap <= most:
                ties += 1
                break
            else:
                raise Difference(
                    f"greedy continuations differ at token {at} of prompt {row} "
                    f"({tokenizer.decode(prompt)[-40:]!r}): {tokenizer.tokens[ours]!r} here, "
                    f"{tokenizer.tokens[choices[0]]!r} in llama.cpp, {gap:.3f} nats apart (bar {most:.2g})"
                )
    return {
        "greedy_prompts": len(prompts),
        "greedy_tokens": compared,
        "greedy_tokens_equal": equal,
        "greedy_near_ties": ties,
        "answers": answers,
    }


def _shown(messages: Conversation) -> str:
    """Return a conversation as text; of a long one its length."""
    whole = str(messages)
    return whole if len(whole) < MOST_SHOWN else f"a conversation of {len(messages)} turns"


def _endings(tokenizer: Tokenizer) -> list[int]:
    """Ids that llama.cpp may have ended at."""
    named = {int(tokenizer.eos_id), int(tokenizer.turn_end_id)}
    return sorted(named | {i for token, i in tokenizer.special_tokens.items() if token in ENDINGS})


def _aligned(row: np.ndarray, theirs: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray, float]:
    """Log-probabilities here and in the file of the tokens that the file named, and what all others add to the KL.

    The others count as one outcome: that can only make the divergence smaller, by the data processing inequality.
    """
    ids = np.fromiter(theirs.keys(), int, len(theirs))
    ours, file = (np.maximum(v, UNDERFLOW) for v in (row[ids], np.fromiter(theirs.values(), float, len(theirs))))
    if len(ids) == len(row):
        return ours, file, 0.0
    left_here, left_there = (max(1.0 - float(np.exp(values).sum()), 1e-12) for values in (ours, file))
    return ours, file, left_here * float(np.log(left_here / left_there))


def first_difference(a: Sequence[object], b: Sequence[object]) -> int:
    """Return the index of the first difference; the shorter length when one begins with the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
