"""A text's tokens as a person asks for them: as a table, beside a second model, and continued from one of them."""

import contextlib
import math
import sys
from dataclasses import dataclass, replace

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Listing, ResultReady, Say, Warn
from settle.infer.child_process import Json
from settle.infer.next_token import GREEDY, LIKELIEST, Sampler
from settle.infer.token_reader import ReadingPair, TextReading, TokenReader, token_text
from settle.library.resolve import resolve

INSTEAD = 3  # alternatives beside each token of the table
LEAST_SHOWN = 0.001  # probability below which it is shown with one digit that counts


@dataclass(frozen=True)
class Asked:
    """What is asked about a text.

    text: None or - reads stdin. template: it is a question, and becomes a turn. specials: control tokens that are
    written in it become tokens. beside: a second model. at: the token whose alternatives are shown; after the text if
    None. take: the rank of the alternative to continue with there. most: tokens to write. sampling: temperature, top-k
    and top-p, None where nothing was asked.
    """

    text: str | None
    template: bool = False
    specials: bool = False
    beside: str | None = None
    at: int | None = None
    take: int | None = None
    most: int = 0
    top: int = 20
    sampling: tuple[float, int, float] | None = None
    seed: int = 0
    context: int | None = None

    @property
    def sampler(self) -> Sampler | None:
        return Sampler(*self.sampling) if self.sampling else None


def tokens(name: str, asked: Asked, events: Events) -> int:
    """Show the tokens of a text with their probabilities in the model `name`; return the exit code.

    Raises SettleError.
    """
    text = asked.text
    if text in (None, "-"):
        if sys.stdin.isatty():
            raise UsageError("there is no text to read", f"settle tokens {name} 'some text', or text on stdin")
        text = sys.stdin.read()
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(TokenReader(resolve(name), asked.context))
        ids = reader.question(text or "") if asked.template else reader.encode(text or "", asked.specials)
        reading = reader.read(ids, max(asked.top, asked.take or 0, LIKELIEST))
        at = _place(asked, reading)
        _say_context(reader, reading, asked, events)
        result = reading.to_json(asked.sampler, asked.top)
        pair = None
        if asked.beside:
            other = stack.enter_context(TokenReader(resolve(asked.beside), asked.context))
            pair = beside(reading, other, text or "", asked.specials)
            result["with"] = pair.to_json()
        events.emit(_token_table(reading, pair))
        if pair:
            events.emit(Say(text=_pair_line(pair)))
        events.emit(_alternatives_table(reading, at, asked))
        if asked.take is not None or asked.most:
            result["branch"] = _branch(reader, reading, at, asked, events)
    events.emit(ResultReady(result=result))
    return 0


def beside(reading: TextReading, other: TokenReader, text: str, specials: bool = False) -> ReadingPair:
    """Read the same tokens in a second model, or the same text where it has another tokenizer."""
    pair = ReadingPair.of(reading, TextReading(other.name, other.engine, other.tokenizer, [], reading.positions))
    ids = other.encode(text, specials) if pair.difference else reading.ids
    return ReadingPair(reading, other.read(ids), pair.difference)


def branch(
    reader: TokenReader, reading: TextReading, at: int, token: int | None, most: int, sampler: Sampler, seed: int = 0
) -> TextReading:
    """Read the text up to token `at` again, with another token there, and what follows.

    token: None, the text continues by itself. Raises UsageError where there is no such place.
    """
    if not 1 <= at <= len(reading.ids):
        raise UsageError(f"there is no token {at} to branch at", f"give one of 1 to {len(reading.ids)}")
    begun = [*reading.ids[:at], *([] if token is None else [token])]
    branched = reader.read([*begun, *reader.write(begun, most, sampler, seed)])
    return replace(branched, skipped=branched.skipped + reading.skipped)


def _branch(reader: TokenReader, reading: TextReading, at: int, asked: Asked, events: Events) -> Json:
    token = None
    if asked.take is not None:
        distribution = reading.positions.at(at - 1)
        if asked.take > len(distribution.ids):
            raise UsageError(f"there is no alternative {asked.take} there", "see the table without --take")
        token = int(distribution.ids[asked.take - 1])
    branched = branch(reader, reading, at, token, asked.most, asked.sampler or GREEDY, asked.seed)
    kept = reading.skipped + at - branched.skipped
    text = reader.text(branched.ids[max(kept, 0) :])
    events.emit(AnswerText(text=text + "\n"))
    return {"at": reading.skipped + at, "text": text} | branched.to_json()


def _place(asked: Asked, reading: TextReading) -> int:
    at = len(reading.ids) if asked.at is None else asked.at - reading.skipped
    if not 1 <= at <= len(reading.ids):
        first, last = reading.skipped + 1, reading.skipped + len(reading.ids)
        raise UsageError(f"nothing is predicted at token {asked.at}", f"--at takes {first} to {last}")
    return at


def summary(reading: TextReading, pair: ReadingPair | None = None) -> str:
    """Say what was read of a text and by what, and how the second model compares, in a sentence or two."""
    text = f"{len(reading.ids):,} tokens, read by {reading.engine}"
    text += f"; {reading.skipped:,} before them did not fit into the context" if reading.skipped else ""
    return f"{text}. {_pair_line(pair)}" if pair else f"{text}."


def _say_context(reader: TokenReader, reading: TextReading, asked: Asked, events: Events) -> None:
    if asked.context and asked.context > reader.longest:
        events.emit(Warn(text=f"{reader.name} was trained for {reader.longest:,} tokens: that is its context here"))
    if reading.skipped:
        text = f"the text has {reading.skipped + len(reading.ids):,} tokens: the model sees the last {reader.context:,}"
        wider = " (--context for more)" if reader.context < reader.longest else ""
        events.emit(Warn(text=text + wider))


def _token_table(reading: TextReading, pair: ReadingPair | None) -> Listing:
    gains = pair.gains if pair else []
    columns = ["#", "token", "probability", "rank", "entropy (nats)"]
    columns += ["change of log p (nats)"] if gains else []
    rows = []
    for at, text in enumerate(reading.texts):
        distribution, logprob = reading.before(at), reading.logprob(at)
        row: list[object] = [reading.skipped + at, text.shown + (f" in {text.whole}" if text.whole else "")]
        if distribution is None or logprob is None:
            row += ["–", "–", "–"] + ["–"] * bool(gains) + ["nothing stands before it"]
        else:
            row += [percent(math.exp(logprob)), f"{reading.positions.ranks[at - 1]:,}", f"{distribution.entropy:.2f}"]
            if gains:
                gain = gains[at]
                row.append("–" if gain is None else f"{gain:+.2f}")
            ahead = min(int(reading.positions.ranks[at - 1]) - 1, INSTEAD)
            likelier = zip(distribution.ids[:ahead].tolist(), distribution.logprobs, strict=False)
            shown = [f"{token_text(reading.tokenizer, t).shown} {percent(math.exp(p))}" for t, p in likelier]
            row.append(" · ".join(shown))
        rows.append(row)
    title = f"{reading.model}, read by {reading.engine}"
    return Listing(title=title, columns=[*columns, "likelier"], rows=rows)


def _alternatives_table(reading: TextReading, at: int, asked: Asked) -> Listing:
    distribution = reading.positions.at(at - 1)
    rows: list[list[object]] = []
    for entry in reading.alternatives(distribution, asked.sampler, asked.top):
        shown = token_text(reading.tokenizer, entry["id"]).shown
        shares = [percent(entry[key]) for key in ("probability", "drawn") if key in entry]
        rows.append([entry["rank"], shown, *shares])
    columns = ["rank", "token", "probability"] + ["drawn"] * (asked.sampler is not None)
    where = "after the text" if at == len(reading.ids) else f"at token {reading.skipped + at}"
    return Listing(title=f"{where}, entropy {distribution.entropy:.2f} nats", columns=columns, rows=rows)


def _pair_line(pair: ReadingPair) -> str:
    one, other = pair.one, pair.other
    bits = [f"{reading.model} {reading.bits_per_byte:.3f}" for reading in (one, other) if reading.bits_per_byte]
    line = f"bits per byte: {', '.join(bits)}"
    if pair.difference:
        return f"{other.model} has another tokenizer ({pair.difference}): only whole texts can be compared. {line}"
    return line


def percent(probability: float) -> str:
    """Format a probability with one digit after the point, and one that counts where it is small."""
    return f"{100 * probability:.1f} %" if probability >= LEAST_SHOWN else f"{100 * probability:.1g} %"
