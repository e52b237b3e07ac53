"""Models for the flows that need some: tiny ones, really trained, in the store of the studio's home."""

import json
from pathlib import Path

import pytest

from settle.formats.gguf import export_gguf
from settle.library.store import StoredModel, add_model
from tests.studio.payloads import PAYLOADS
from tests.trained import adapter, merged, trained

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def stock(home: Path) -> None:
    """`tiny` and `tuned` are different weights; `twin` is a copy of `tiny` under another name. Rows hold scripts."""
    if (home / "tiny.gguf").exists():
        return
    made = trained()
    weights = {"tiny": made.weights, "tuned": merged(made.weights, adapter(made.part)), "twin": made.weights}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(home))
        for name, tensors in weights.items():
            file = home / f"{name}.gguf"
            export_gguf(made.part, tensors, made.tokenizer, file, "f32", {"chat_template": TEMPLATE})
            add_model(StoredModel(name, "gguf", file, "ab" * 32, "test"))
    scripts = [" ".join((PAYLOADS * 2)[8 * n % 40 :][:8]) for n in range(48)]
    rows = [{"prompt": f"What is {n} + {n}? {scripts[n]}", "completion": f"It is {2 * n}."} for n in range(48)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
