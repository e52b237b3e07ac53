"""What a model in training makes of a person's prompt: the one figure that everybody can judge."""

import time

from settle.base.event_log import Events
from settle.base.events import Sample
from settle.base.tokenizer import Tokenizer
from settle.evaluate.compare.candidate import LiveModel
from settle.evaluate.compare.cases import asking
from settle.infer.live_sampling import generate
from settle.model.decoder import Decoder

TOKENS, SECONDS = 64, 6.0  # of a sample, at most
TEMPERATURE, TOP_P, SEED = 0.6, 0.95, 0  # where a text is completed; an answer is the likeliest one


class Samples:
    """Completes or answers one prompt with the live model whenever it is asked to, as an event."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, context: int, prompt: str, events: Events) -> None:
        self._model, self._tokenizer, self._prompt, self._events = model, tokenizer, prompt, events
        self._context = context
        asker = LiveModel(None, tokenizer, "", context)
        self._ids = asker.prompt(asking(prompt))[-context // 2 :]
        self._temperature = 0.0 if asker.chats else TEMPERATURE

    def take(self, step: int, moment: str) -> None:
        """Emit a sample of the weights as they are. step: of the weights; moment: as of the event."""
        stops = tuple(i for i in (self._tokenizer.eos_id, self._tokenizer.turn_end_id) if i is not None)
        until, ids = time.monotonic() + SECONDS, []
        written = generate(self._model, self._ids, TOKENS, self._temperature, TOP_P, SEED, stops, self._context)
        for token in written:
            ids.append(token)
            if time.monotonic() > until:
                break
        text = self._tokenizer.decode(ids)
        self._events.emit(Sample(step=step, moment=moment, prompt=self._prompt, text=text))
