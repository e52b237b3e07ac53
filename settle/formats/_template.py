"""Chat templates are programs that come with a file: they run only in jinja2's immutable sandbox."""

from collections.abc import Mapping, Sequence
from typing import Any

LONGEST = 1 << 18


def complaint(template: str) -> str | None:
    """What is wrong with a template's grammar, or None. The template is parsed, not run."""
    from jinja2 import TemplateError

    if len(template) > LONGEST:
        return f"the chat template is {len(template)} characters long, {LONGEST} is the most"
    try:
        _environment().parse(template)
    except (TemplateError, RecursionError, ValueError) as e:
        return f"the chat template does not parse: {str(e)[:200]}"
    return None


def render(template: str, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, **tokens: Any) -> str:
    """Messages through a template; tokens: bos_token, eos_token. Raises jinja2.TemplateError."""
    compiled = _environment().from_string(template)
    return compiled.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **tokens)


def _environment() -> Any:
    """As transformers sets it up (chat_template_utils), so that a template means the same here and there."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %} … {% endgeneration %}` marks what is trained on; rendered, it is just its content."""

        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    return environment
