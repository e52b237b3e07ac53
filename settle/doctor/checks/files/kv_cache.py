"""Keys and values are kept in a type that is too coarse for the model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from settle.base.errors import UsageError
from settle.doctor.checks import Check
from settle.doctor.findings import Finding, Fix
from settle.doctor.known_answers import PARAGRAPHS, SPELLED
from settle.doctor.likelihood import LikelihoodSide, prose_trial, reader_of, strength_of, text_reading
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial
from settle.infer.scorer import Overrides

WHOLE, COARSEST = "f16", "q4_0"
LOOKED = 2  # paragraphs that a look reads
LEAST_NATS = 0.02  # per token


class KvCache(Check):
    """What is kept of the tokens before is rounded like weights, and some models bear that badly."""

    number: ClassVar[int] = 12
    symptom: ClassVar[str] = "worse answers the longer a chat gets: the KV cache is rounded too coarsely"
    about: ClassVar[tuple[str, ...]] = ("model",)
    seconds: ClassVar[float] = 3.0

    def detect(self, subject: Subject) -> Iterator[Finding]:
        cache = subject.running.cache
        if cache in (WHOLE, "f32", "bf16"):
            return
        assert subject.model is not None
        with reader_of(subject.model) as reader:
            readings = [text_reading(reader.engine, text) for text in PARAGRAPHS[:LOOKED]]
            whole = sum(map(reader.nats, readings)) / LOOKED
            with reader.overridden(Overrides(cache=cache)):
                rounded = sum(map(reader.nats, readings)) / LOOKED
        if rounded - whole > LEAST_NATS:
            yield Finding(
                check=self.part_name(),
                what=f"a KV cache in {cache} is too coarse for this model",
                evidence=(f"prose costs {rounded:.3f} nats per token with it, {whole:.3f} in {WHOLE}",),
                strength=strength_of(rounded - whole),
                details={"cache": cache},
            )

    def trial(self, finding: Finding, subject: Subject, folder: Path) -> Trial:
        assert subject.model is not None
        cache = str(finding.details["cache"])
        return prose_trial(
            knob=f"KV cache {WHOLE} in place of {cache}",
            before=LikelihoodSide(cache, subject.model, overrides=Overrides(cache=cache)),
            after=LikelihoodSide(WHOLE, subject.model),
            looked=LOOKED,
            least=LEAST_NATS / 2,
        )

    def fix(self, finding: Finding, subject: Subject) -> Fix:
        return Fix(
            what="keep keys and values in f16, or in q8_0 where memory is short",
            command=f"llama-server --cache-type-k {WHOLE} --cache-type-v {WHOLE}, or OLLAMA_KV_CACHE_TYPE={WHOLE}",
        )

    def injected(self, healthy: Subject, folder: Path) -> Subject:
        """The coarsest type, where other text than the doctor looks at shows that it does harm."""
        assert healthy.model is not None
        with reader_of(healthy.model) as reader:
            readings = [text_reading(reader.engine, text) for text in SPELLED]
            whole = sum(map(reader.nats, readings)) / len(readings)
            with reader.overridden(Overrides(cache=COARSEST)):
                harm = sum(map(reader.nats, readings)) / len(readings) - whole
        if harm < LEAST_NATS:
            raise UsageError(f"{COARSEST} does this model no harm: {harm:+.3f} nats per token", "choose another one")
        return replace(healthy, running=replace(healthy.running, cache=COARSEST))
