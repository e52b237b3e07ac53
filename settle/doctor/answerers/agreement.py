"""A side of an A/B whose answers should be those that another request gets."""

from settle.doctor.answerers import Answerer
from settle.doctor.exchanges.exchange import Change, Request, text_of
from settle.doctor.trial import Item, Side

TOKENS = 16  # of an answer that is compared


class AgreementSide(Side):
    """Whether a question, put into `base` as `change` has it, is answered as it is in `wanted`. Answers are the
    likeliest ones, so that nothing but the request decides."""

    def __init__(self, name: str, answerer: Answerer, base: Request, change: Change, wanted: Request) -> None:
        self.name, self._answerer, self._base, self._change, self._wanted = name, answerer, base, change, wanted
        self.num_bytes = answerer.num_bytes // 2  # both sides are one process

    def open(self) -> None:
        self._answerer.open()

    def close(self) -> None:
        self._answerer.close()

    def measure(self, item: Item) -> float:
        one = likeliest(self._answerer, self._change(self._base).asking(str(item)))
        return float(one == likeliest(self._answerer, self._wanted.asking(str(item))))


def likeliest(answerer: Answerer, request: Request) -> str:
    """The beginning of the likeliest answer. Raises SettleError."""
    reply = answerer.ask(request.having(temperature=0, seed=0, max_tokens=TOKENS))
    return (reply.reasoning + reply.text).strip()


def instructions(request: Request) -> str:
    """The system prompt of a request."""
    return "\n".join(text_of(message) for message in request.messages if message.get("role") == "system")
