"""How many texts get the same token ids here and in llama.cpp, for models of others: adversarial, mixed and natural.

    python bench/token_ids.py smollm2 gemma3-270m --texts 3000

The models are names of the store or .gguf files. Each text is compared twice: as text, and as a rendered chat.
"""

import argparse
import inspect
import json
import pkgutil
import random
from importlib.util import find_spec
from pathlib import Path

from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.evaluate.gate.behaviour import ADVERSARIAL
from settle.evaluate.gate.gate import PROSE
from settle.infer.engine import Engine
from settle.model.pretrained import Pretrained

PIECES = [
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "'s", "'LL", "a", "Zz", "é", "e\u0301", "ß", "0", "12",
    "1234567", "٣", "日本", "한국", "ก", "ा", "क", "😀", "👩‍👩‍👧", "\u200d", "\u00a0", "\u3000",
    "\u0085", "\u2028", "_", "-", "!", "。", "$", "<", "|", "{", "ſ", "K", "İ", "\x00", "\x1f", "\ufeff",
    "\U0010ffff", "𝔘", "ﬁ", "²", "Ⅷ", "▁", "Ġ", "word", "don't", "\ue000",
]  # fmt: skip


def texts(tokenizer: PretrainedTokenizer, number: int) -> list[str]:
    """Return random texts of three kinds, a third each.

    Awkward pieces mixed with the model's own special tokens, any code points, and pieces of the standard library's
    source.
    """
    draw = random.Random(0)
    own = [
        *list(tokenizer.special_tokens)[:60],
        *(t for t, k in zip(tokenizer.tokens, tokenizer.token_types, strict=True) if k == 4),
    ]
    found = [*ADVERSARIAL, *PROSE]
    sources = [find_spec(m.name).origin for m in pkgutil.iter_modules([str(Path(inspect.__file__).parent)])][:150]
    source = "\n".join(
        Path(s).read_text(encoding="utf-8", errors="replace") for s in sources if s and s.endswith(".py")
    )
    while len(found) < number:
        kind = len(found) % 3
        if kind == 0:
            found.append("".join(draw.choices(PIECES + own[: len(PIECES)], k=draw.randint(1, 25))))
        elif kind == 1:
            planes = [range(32, 0x250), range(32, 0xD800), range(0xE000, 0x10FFFF)]
            found.append("".join(chr(draw.choice(draw.choice(planes))) for _ in range(draw.randint(1, 20))))
        else:
            at = draw.randrange(len(source) - 800)
            found.append(source[at : at + draw.randint(1, 800)])
    return found


def compared(name: str, number: int) -> dict:
    """Return the counts for one model."""
    model = Pretrained.open(name)
    tokenizer, given = model.tokenizer, texts(model.tokenizer, number)
    counts = {"model": name, "texts": len(given), "equal_as_text": 0, "equal_as_chat": 0, "first_difference": None}
    with Engine(model.source.path, context=256, threads=1) as engine:
        for text in given:
            for specials, key in ((False, "equal_as_text"), (True, "equal_as_chat")):
                if tokenizer.encode(text, specials).tolist() == engine.tokenize(text, specials):
                    counts[key] += 1
                elif counts["first_difference"] is None:
                    counts["first_difference"] = text
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--texts", type=int, default=3000)
    parser.add_argument("--out", type=Path, help="write the counts as JSON to this file too")
    asked = parser.parse_args()
    told = [compared(name, asked.texts) for name in asked.models]
    print(json.dumps(told, indent=1, ensure_ascii=False))
    if asked.out:
        asked.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
