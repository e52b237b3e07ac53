"""Third-party servers: one file a program, how it is recognised, and what it says of the models that it serves."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from settle.base.registry import Part
from settle.doctor.web import Web
from settle.wire.exchange import Fields, objects_in


@dataclass(frozen=True)
class Served:
    """A model of a server, as far as it says."""

    name: str
    chats: bool = True
    is_loaded: bool = False
    context: int | None = None  # tokens that it is loaded with
    longest: int | None = None  # tokens that the model was made for
    settings: Fields = field(default_factory=dict)  # of a request without any, in llama.cpp's words


class ServerKind(Part):
    """The contract of a kind of server. It is only asked, never changed."""

    rank: ClassVar[int]  # the order in which kinds are tried: one that others imitate comes after them
    title: ClassVar[str]  # to show
    api: ClassVar[str] = "openai"  # wire format of the bodies that it is asked with
    path: ClassVar[str] = "/v1/chat/completions"  # where it answers chats

    @abstractmethod
    def models(self, web: Web) -> list[Served] | None:
        """Return the models that it has; None where the server is of another kind. Raises RunError."""

    def described(self, web: Web, model: Served) -> Served:
        """Return what it says of one of them, asked for once it is chosen. Raises RunError."""
        return model


def listed(answer: Fields, name: str) -> list[Fields] | None:
    """Return the objects of a list in an answer, or None where there is no such list."""
    return objects_in(answer[name]) if isinstance(answer.get(name), list) else None


def number(*values: object) -> int | None:
    """Return the first whole number above zero."""
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)
