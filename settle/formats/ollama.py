"""A folder for `ollama create NAME -f Modelfile`: the GGUF, and how to talk to it.

Format: https://github.com/ollama/ollama/blob/main/docs/modelfile.md. Ollama does not run the Jinja template of the
file; it guesses one of its own from it. So the template is written out in Go's language wherever it is a plain
sequence of turns, and proven to render the same. Adapters are merged: since 0.34.1 `ollama create` refuses a Modelfile
with ADAPTER (https://github.com/ollama/ollama/pull/14969).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from settle.base.chat_template import ChatTemplate, TemplateFailure, default_system, without_default_system
from settle.base.files import write_atomic
from settle.base.python_command import shell_line
from settle.base.tokenizer import Tokenizer
from settle.formats import ModelContents, folder_to_write
from settle.formats.gguf import Gguf, export_contents


class Ollama(Gguf):
    """A folder with Modelfile and GGUF."""

    suffix: ClassVar[str] = ""

    def write(self, path: Path, model: ModelContents) -> Path:
        file = path / f"{model.card.get('name') or path.name}.gguf"
        with folder_to_write(path):
            export_contents(model, file, self.dtype)
            context, base = model.architecture.max_position_embeddings, bool(model.card.get("base"))
            write_atomic(path / "Modelfile", modelfile(f"./{file.name}", model.tokenizer, context, base))
        return path

    def gguf(self, path: Path) -> Path:
        lines = (Path(path) / "Modelfile").read_text(encoding="utf-8").splitlines()
        return Path(path) / next(line for line in lines if line.startswith("FROM ")).removeprefix("FROM ")

    def default_path(self, name: str) -> Path:
        return Path(f"{name}-ollama")

    def next_line(self, path: Path, name: str) -> str:
        return f"{shell_line('ollama', 'create', name, '-f', str(path / 'Modelfile'))} && ollama run {name}"


def modelfile(source: str, tokenizer: Tokenizer, context: int, base: bool = False) -> str:
    """Return the Modelfile for `ollama create NAME -f Modelfile`.

    source: the GGUF as the Modelfile finds it; base: whether the model completes plain text, so that nothing may be put
    around it.
    """
    lines = [f"FROM {source}", f"PARAMETER num_ctx {context}"]
    source_template = tokenizer.chat_template
    system = default_system(source_template)
    # three quotes at the end of a line would end the prompt there: then the template carries it, on one line
    if system and not re.search(r'"""\s*$|"\Z', system, re.MULTILINE):
        lines.append(f'SYSTEM """{system}"""')
        source_template = without_default_system(source_template)
    template = "{{ .Prompt }}" if base or not source_template else turns(tokenizer, source_template)
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    ends = [tokenizer.tokens[i] for i in (tokenizer.eos_id, tokenizer.turn_end_id) if i is not None]
    lines += [f'PARAMETER stop "{token}"' for token in dict.fromkeys(ends)]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Turns:
    """The text around messages: before each role's content, after it, and before everything."""

    first: str  # before a first message that is the user's: often a system prompt that nobody asked for
    before: Mapping[str, str]
    after: Mapping[str, str]
    opening: str  # start of the requested answer

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        out = self.first if messages[0]["role"] != "system" else ""
        for message in messages:
            out += self.before[message["role"]] + message["content"] + self.after[message["role"]]
        return out + self.opening

    def go(self) -> str:
        """Return the turns in Go's text/template, every literal quoted so that no space is lost."""
        branches = [
            f'{{{{ {"else if" if n else "if"} eq .Role "{role}" }}}}'
            f"{_quoted(self.before[role])}{{{{ .Content }}}}{_quoted(self.after[role])}"
            for n, role in enumerate(self.before)
        ]
        start = '{{ if and (eq $i 0) (ne .Role "system") }}'
        first = f"{start}{_quoted(self.first)}{{{{ end }}}}" if self.first else ""
        loop = "{{ range $i, $_ := .Messages }}" + first + "".join(branches) + "{{ end }}{{ end }}"
        return loop + _quoted(self.opening)


def turns(tokenizer: Tokenizer, source: str | None = None) -> str | None:
    """Translate the chat template into Go's language; None when it is not a plain sequence of turns.

    source: a template in place of the tokenizer's own. What the Jinja template puts around messages is read off a few
    renderings, and used only when it renders other conversations to the same characters. An opening token that
    llama.cpp adds by itself is left out.
    """
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    tokens = {key: "" if i is None else tokenizer.tokens[i] for key, i in ids.items()}

    def rendered(messages: Sequence[Mapping[str, str]], wanted: bool = True) -> str:
        text = template.render(messages, add_generation_prompt=wanted)
        return text.removeprefix(tokens["bos_token"]) if tokenizer.add_bos else text

    try:
        template = ChatTemplate(source or tokenizer.chat_template, tokens["bos_token"], tokens["eos_token"])
        markers = _read_off(rendered)
        if markers is None:
            return None
        known = [m for m in PROBES if markers.before.keys() >= {message["role"] for message in m}]
        same = all(markers.render(messages) == rendered(messages) for messages in known)
    except (TemplateFailure, ValueError):  # it refuses a talk, or leaves out or repeats what was said
        return None
    return markers.go() if same else None


USER, ANSWER, AGAIN, RULE = "\ufdd0user", "\ufdd1answer", "\ufdd2again", "\ufdd3rule"  # occur in no template
PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Is 1 < 2?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c\n\nd"},
        {"role": "assistant", "content": "e"},
        {"role": "user", "content": "f"},
    ],
    [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
)


def _read_off(rendered: Callable[..., str]) -> _Turns | None:
    """Read off the text around messages; without "system" when the template has no such turn."""
    user, answer = {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}
    first, closed = rendered([user], False).split(USER)
    opened = rendered([user]).split(USER)[1]
    talk = rendered([user, answer, {"role": "user", "content": AGAIN}])
    _, reply = talk.split(USER)
    to_answer, rest = reply.split(ANSWER)
    to_user, last = rest.split(AGAIN)
    if last != opened or not opened.startswith(closed) or not to_answer.startswith(closed):
        return None
    ended = rendered([user, answer], False).split(ANSWER)[1]
    if not to_user.startswith(ended):
        ended = ""
    before = {"user": to_user.removeprefix(ended), "assistant": to_answer.removeprefix(closed)}
    after = {"user": closed, "assistant": ended}
    if not first.endswith(before["user"]):
        return None
    try:
        head, tail = rendered([{"role": "system", "content": RULE}, user], False).split(RULE)
        between = tail.split(USER)[0]
        if between.endswith(before["user"]):
            before["system"], after["system"] = head, between.removesuffix(before["user"])
    except (TemplateFailure, ValueError):
        pass  # it refuses system prompts, or leaves them out
    return _Turns(first.removesuffix(before["user"]), before, after, opened.removeprefix(closed))


def _quoted(text: str) -> str:
    """Quote a piece of text as a Go template's string constant; nothing for no text."""
    for plain, written in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(plain, written)
    return f'{{{{ "{text}" }}}}' if text else ""
