"""The start of a long prompt is cut off without a word, so that the model never saw it."""

import time
from collections.abc import Iterator
from typing import ClassVar

from settle.doctor.answerer import Answerer, LocalModel
from settle.doctor.asked_again import AskedAgain, request_fix
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.known_answers import PROSE
from settle.doctor.served_model import ServedModel
from settle.doctor.subject import AskedModel, ChatRecord, ServedChat
from settle.doctor.trial import Item, Side, Trial
from settle.wire.exchange import Exchange, Request, text_of

ITEMS = 10  # pairs of words
LEAST_SHARE = 0.5
SLACK, SLACK_TOKENS = 0.9, 32  # templates and tokenizers differ by less
DENSEST = 8.0  # characters a token: no text has more on average
KEPT = 4  # tokens at the very start that servers keep
CUT_TOKENS = 90  # that a cut has to take for the fact at the start to be in it
FEWEST_TOKENS = 180  # of a prompt of the A/B
SAME_NATS = 1e-3  # that log-probabilities of the same prompt may differ by
TOP = 20  # tokens that are likeliest to come next
PROBE_SECONDS, PROBE_TOKENS = 5.0, 3000
ANSWER_TOKENS = 12
WORDS = (
    *("amber", "falcon", "granite", "harbor", "indigo", "juniper", "kettle", "lantern", "marble", "nectar", "orchid"),
    *("pepper", "quartz", "raven", "saddle", "timber", "umbrella", "velvet", "walnut", "yellow", "zebra", "anchor"),
    *("basket", "candle", "dolphin", "ember", "feather", "garlic", "hammer", "island", "jacket", "lemon", "mirror"),
    *("needle", "olive", "pencil", "ribbon", "silver", "tunnel", "violin", "window", "acorn", "bridge", "bottle"),
)


class CutPrompt(Details):
    """The exchange, or -1 for a prompt of the look, the tokens that were sent, and those that were read."""

    exchange: int
    sent: int
    read: int


class ForgottenStart(AskedAgain[CutPrompt]):
    """Servers cut a prompt that does not fit their context, most at its start, and answer as if nothing were wrong."""

    number: ClassVar[int] = 14
    symptom: ClassVar[str] = "it forgets or ignores what stood at the start of a long prompt"
    seconds: ClassVar[float] = 4.0

    def detect(self, subject: AskedModel) -> Iterator[Finding[CutPrompt]]:
        chat = subject.chat
        found = [cut for at, exchange, _ in chat.answered if (cut := _cut(chat, at, exchange))]
        server = _server(chat) if isinstance(subject, ServedChat) else None
        if not found and server is not None:
            found = list(_probed(server))
        if not found:
            return
        at, own, read = found[0]
        evidence = (
            f"{f'exchange {place + 1}' if place >= 0 else 'a long prompt'}: {sent:,} tokens were sent, and the server "
            f"counted {seen:,}"
            for place, sent, seen in found[:3]
        )
        yield self.finding(
            f"the start of the prompt was cut off: of {own:,} tokens the model read {read:,}",
            *evidence,
            strength=0.97,
            details=CutPrompt(exchange=at, sent=own, read=read),
        )

    def asked_again(self, finding: Finding[CutPrompt], subject: AskedModel, answerer: Answerer) -> Trial | None:
        sent, read = finding.details.sent, finding.details.read
        match answerer:
            case LocalModel():
                length = min(sent, max(FEWEST_TOKENS, round(CUT_TOKENS / (1 - read / sent))))
                before: Side = _LocalStart("cut as it was", answerer, length, round(length * read / sent))
                after: Side = _LocalStart("whole", answerer, length, None)
                knob, share = f"the whole prompt, where {1 - read / sent:.0%} of it was cut off", 0.5
            case ServedModel():
                before = _ServedStart("as long as it was", answerer, round(read * 1.3))
                after = _ServedStart("short enough", answerer, round(read * 0.4))
                knob, share = f"a prompt that fits into {read:,} tokens", 2.0
            case _:
                return None
        before.load()
        started = time.monotonic()
        after.measure(f"{WORDS[-2]} {WORDS[-1]}")
        seconds = (time.monotonic() - started) * share  # of both sides
        pairs: list[Item] = [f"{WORDS[2 * n]} {WORDS[2 * n + 1]}" for n in range(2 * ITEMS)]
        return Trial(
            knob=knob,
            before=before,
            after=after,
            measure="answers that depend on the start of the prompt",
            unit="of one",
            items=pairs[:ITEMS],
            others=pairs[ITEMS:],
            least=LEAST_SHARE,
            lower=False,
            seconds=seconds,
        )

    def fix(self, finding: Finding[CutPrompt], subject: AskedModel) -> Fix:
        sent, at = finding.details.sent, finding.details.exchange
        context = 1 << (sent + 1024 - 1).bit_length()  # with room for an answer
        server = _server(subject.chat)
        request = subject.chat.exchanges[at].request if at >= 0 else None
        if request is not None and "ollama" in (request.api, server and server.kind.api):
            return request_fix(request, "context", context)
        commands = {"llama-server": f"llama-server --ctx-size {context}", "Ollama": f"OLLAMA_CONTEXT_LENGTH={context}"}
        what = f"give the server a context of {context:,} tokens, or send at most {finding.details.read:,}"
        return Fix(what, commands.get(server.kind.title if server else "", f"settle serve --context {context}"))


def _server(chat: ChatRecord) -> ServedModel | None:
    return chat.answerer if isinstance(chat.answerer, ServedModel) else None


def _cut(chat: ChatRecord, at: int, exchange: Exchange) -> tuple[int, int, int] | None:
    """Return the place of an exchange, the tokens of its prompt, and those that the server counted, if it is less."""
    reply, request = exchange.reply, exchange.request
    read = reply.prompt_tokens if reply is not None else None
    characters = sum(len(text_of(message)) for message in request.messages)
    if not read or characters < 2 * read:  # every text has more of them than tokens, or nearly
        return None
    own = chat.answerer.num_prompt_tokens(request) if chat.answerer is not None else None
    if own is None:
        own = round(characters / DENSEST)
    return (at, own, read) if read < SLACK * own - SLACK_TOKENS else None


def _probed(server: ServedModel) -> Iterator[tuple[int, int, int]]:
    """Yield a prompt as long as the server reads in seconds, if it cuts that."""
    started = time.monotonic()
    sample = Request(({"role": "user", "content": _filler(1500)},), settings={"max_tokens": 1})
    count = server.ask(sample).prompt_tokens
    if count is None:
        return
    speed = count / (time.monotonic() - started)
    tokens = min(round(speed * PROBE_SECONDS), PROBE_TOKENS, (server.model.context or PROBE_TOKENS) - 64)
    if tokens < 2 * count:
        return
    request = Request(({"role": "user", "content": _filler(round(1500 * tokens / count))},), settings={"max_tokens": 1})
    cut = _cut(ChatRecord((), server), -1, Exchange(request, server.ask(request), ""))
    if cut:
        yield cut


class _LocalStart(Side):
    """1 where what a model of this machine expects next depends on the start, else 0.

    length: of a prompt, in tokens. limit: to which it is cut as servers do, or None.
    """

    def __init__(self, name: str, model: LocalModel, length: int, limit: int | None) -> None:
        self.name, self._model, self._length, self._limit = name, model, length, limit
        self.num_bytes = model.num_bytes // 2

    def load(self) -> None:
        self._model.open()

    def close(self) -> None:
        self._model.close()

    def measure(self, item: Item) -> float:
        prompts = [self._ids(word) for word in str(item).split()]
        if prompts[0] == prompts[1]:
            return 0.0  # the words were cut off, and the same ids have the same answer
        engine = self._model.engine  # what it kept of the other prompt would move the numbers a little
        one, two = (engine.next_token_logprobs(prompt, TOP, reuse=False) for prompt in prompts)
        shared = one.keys() & two.keys()
        return float(len(shared) < TOP // 2 or max(abs(one[token] - two[token]) for token in shared) > SAME_NATS)

    def _ids(self, word: str) -> list[int]:
        prompt = self._model.prompt(canary(word, self._length * 4))
        return cut_ids(prompt, self._limit) if self._limit else prompt


class _ServedStart(Side):
    """1 where the answer of a third-party server depends on the start, else 0. length: of a prompt, in tokens."""

    def __init__(self, name: str, server: ServedModel, length: int) -> None:
        self.name, self._server, self._length = name, server, length

    def measure(self, item: Item) -> float:
        settings = {"max_tokens": ANSWER_TOKENS, "temperature": 0, "seed": 0}
        replies = [self._server.ask(canary(word, self._length * 4).having(**settings)) for word in str(item).split()]
        one, two = (reply.text + reply.reasoning for reply in replies)
        return float(one != two)


def canary(word: str, characters: int) -> Request:
    """Return a prompt with a fact at its start, and a question about it at its end."""
    text = f"The code word is {word}. Remember it.\n\n{_filler(characters)}\n\nWhat is the code word? The code word is"
    return Request(({"role": "user", "content": text},))


def cut_ids(ids: list[int], limit: int) -> list[int]:
    """Return what a server that cuts a prompt leaves of it: its very start, and its end."""
    return ids if len(ids) <= limit else [*ids[:KEPT], *ids[len(ids) - limit + KEPT :]]


def _filler(characters: int) -> str:
    text = " ".join(PROSE)
    return (text + " ") * (characters // len(text)) + text[: characters % len(text)]
