"""Files that a model could become: each with its types, its exact size, and what is predicted and measured of it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from pydantic import BaseModel, Field

from settle.base.events import Say
from settle.base.files import JsonObject
from settle.base.words.amounts import amount
from settle.evaluate.divergence import Divergence
from settle.evaluate.footprint import Footprint, footprints
from settle.formats import Weights
from settle.formats.gguf.types import ggml_type
from settle.shrink.pareto import Point
from settle.shrink.quantizers import Quantizer
from settle.shrink.session import Session
from settle.shrink.types.mixes import mix_types
from settle.shrink.types.quantize_file import quantized_already
from settle.shrink.types.w4a16 import packable

BANDWIDTH_SHARE = 0.85  # share of a token's time that is memory traffic, when only one file was measured


@dataclass(frozen=True)
class ThroughputModel:
    """How fast llama.cpp writes with a file of some size: seconds `per_byte` that a token reads, and `fixed` ones.

    The two-parameter law of decoding (memory traffic, and work that does not depend on the weights' type). Files of
    one model differ only in the bytes, so two measurements predict all others.
    """

    per_byte: float
    fixed: float

    @classmethod
    def fit(cls, measured: Sequence[tuple[int, float]]) -> "ThroughputModel":
        """measured: (bytes that a token reads, tokens a second) of one file or more, of different sizes."""
        points = [(read, 1 / speed) for read, speed in measured]
        if len(points) > 1:
            mean_read = sum(read for read, _ in points) / len(points)
            mean_time = sum(time for _, time in points) / len(points)
            spread = sum((read - mean_read) ** 2 for read, _ in points)
            slope = sum((read - mean_read) * (time - mean_time) for read, time in points) / spread if spread else 0.0
            fixed = mean_time - slope * mean_read
            if slope > 0 and fixed >= 0:
                return cls(slope, fixed)
        read, time = points[0]
        return cls(BANDWIDTH_SHARE * time / read, (1 - BANDWIDTH_SHARE) * time)

    def tokens_per_second(self, read: int) -> float:
        """With a file of which a token reads so many bytes."""
        return 1 / (self.fixed + self.per_byte * read)

    def most_bytes(self, tokens_per_second: float) -> int:
        """Return the bytes that a token may read at that speed; 0 when no file is so fast."""
        return max(0, int((1 / tokens_per_second - self.fixed) / self.per_byte))


def bytes_read(file: Weights, kinds: Mapping[str, str]) -> int:
    """Count the bytes of weights that one token reads.

    All, but for the table of tokens where the head is another one, and the experts that it does not go to. kinds:
    tensor name → type; those not named stay as they are.
    """
    architecture = file.metadata.get("general.architecture")
    experts, used = (file.metadata.get(f"{architecture}.expert_{key}") for key in ("count", "used_count"))
    share = used / experts if isinstance(used, int) and isinstance(experts, int) and used and experts else 1.0
    total = 0.0
    for name, tensor in file.tensors.items():
        if name == "token_embd.weight" and "output.weight" in file.tensors:
            continue
        kind = kinds.get(name, tensor.dtype)
        size = tensor.num_bytes if kind == tensor.dtype else ggml_type(kind).num_bytes(tensor.shape)
        total += size * (share if "_exps." in name else 1)
    return round(total)


class _PlannedChoice(BaseModel):
    """What plan.json has of the file that was chosen."""

    name: str
    kinds: dict[str, str]
    num_bytes: int = Field(alias="bytes")
    mix: str | None = Field(None, alias="recipe")
    predicted: float | None = Field(None, alias="predicted_kl")


@dataclass(frozen=True)
class ShrinkCandidate:
    """A file that could be made, or was.

    kinds: tensor → type. mix: llama.cpp's name, None for a quantizer's choice. predicted: nats per token. divergence:
    on the text that files are chosen by; of the file that was chosen, on other text, and `selection` on the first.
    """

    name: str
    kinds: Mapping[str, str]
    num_bytes: int
    mix: str | None = None
    predicted: float | None = None
    divergence: Divergence | None = None
    footprint: Footprint | None = None
    selection: Divergence | None = None

    @property
    def measured(self) -> Divergence:
        """The divergence of a candidate that was measured."""
        assert self.divergence is not None
        return self.divergence

    @property
    def loss_share(self) -> float:
        """The file's loss, as a share of the loss before, at worst within its interval.

        It is the larger of the increase on the held-out text and of that on text as the model itself writes it. The
        second also shows what a model loses on a text that it never was good at.
        """
        d = self.measured
        rise, kl = (figure.high if figure.is_bounded else figure.value for figure in (d.rise, d.kl))
        return max(rise, kl / d.reference_loss, 0.0)

    @classmethod
    def from_json(cls, values: object) -> "ShrinkCandidate":
        """Read a choice that plan.json holds. Raises ValueError for anything else."""
        return cls(**vars(_PlannedChoice.model_validate(values)))

    def point(self, expected_speed: float | None = None, chosen: bool = False) -> Point:
        """For table and picture: as measured, or as predicted while it is not."""
        d, f = self.divergence, self.footprint
        speed = f.speed.median if f else expected_speed if d is None else None
        return Point(
            name=self.name,
            num_bytes=self.num_bytes,
            kl=max(d.kl.value, 0.0) if d else self.predicted or 0.0,
            low=d.kl.low if d and d.kl.is_bounded else None,
            high=d.kl.high if d and d.kl.is_bounded else None,
            speed=speed,
            same_top=d.same_top.value if d else None,
            rise=d.rise.value if d else None,
            peak_bytes=f.peak_bytes if f else None,
            predicted=d is None and bool(self.predicted),
            chosen=chosen,
        )

    def to_json(self) -> JsonObject:
        return {
            "name": self.name,
            "bytes": self.num_bytes,
            "recipe": self.mix,
            "predicted_kl": self.predicted,
            "divergence": self.divergence and self.divergence.to_json(),
            "selection": self.selection and self.selection.to_json(),
            "footprint": self.footprint and self.footprint.to_json(),
        }


@dataclass
class Candidates:
    """The files of one session. known: every candidate that was measured, by name."""

    session: Session
    quantizer: Quantizer
    known: dict[str, ShrinkCandidate] = field(default_factory=dict)

    def of_mix(self, mix: str) -> ShrinkCandidate:
        """One of llama.cpp's mixes."""
        choices = mix_types(self.session.model.file, mix, has_importance=True)
        return self._candidate(mix, {name: choice.kind for name, choice in choices.items()}, mix)

    def of_size(self, num_bytes: int) -> ShrinkCandidate:
        """Return the quantizer's choice for a file of at most `num_bytes`. Raises UsageError if none is so small."""
        return self._candidate("", self.quantizer.choose_types(self.session.model, num_bytes))

    def packed(self) -> ShrinkCandidate:
        """Return the file whose blocks a folder of compressed-tensors holds."""
        model = self.session.model
        return self._candidate("W4A16", packable(model.source.part, model.file))

    def unchanged(self) -> ShrinkCandidate:
        """No tensor in another type."""
        return ShrinkCandidate("as it is", {}, self.session.file_bytes({}))

    def reference(self, footprint: Footprint | None = None) -> ShrinkCandidate:
        """Return the file that all others are compared with."""
        whole = self.session.whole
        kind = max(whole.kinds, key=whole.kinds.__getitem__)
        name = f"{kind}, whole" if self.session.before_cut else kind
        return ShrinkCandidate(name, {}, whole.source.path.stat().st_size, predicted=0.0, footprint=footprint)

    @property
    def smallest(self) -> int:
        """Bytes of the file with the smallest type that each tensor can have."""
        return self._fixed_bytes + sum(min(sizes.values()) for sizes in self.session.model.costs.num_bytes.values())

    @property
    def largest(self) -> int:
        return self._fixed_bytes + sum(max(sizes.values()) for sizes in self.session.model.costs.num_bytes.values())

    def measure(self, candidate: ShrinkCandidate) -> ShrinkCandidate:
        """Return the candidate with its divergence."""
        if candidate.name not in self.known:
            with self.session.candidate_file(candidate.kinds) as path:
                d = self.session.model.divergence(path)
            self.known[candidate.name] = replace(candidate, divergence=d)
            text = f"{candidate.name}: {amount(candidate.num_bytes, 'bytes')}, KL {d.kl.value:.3g} nats per token"
            self.session.model.events.emit(Say(text=f"{text}, the loss changes by {d.rise.value:+.2%}"))
        return self.known[candidate.name]

    def time(self, candidate: ShrinkCandidate) -> ShrinkCandidate:
        """Return the candidate with its footprint: speed, memory, time to load."""
        known = self.known.get(candidate.name, candidate)
        if known.footprint is None:
            with self.session.candidate_file(candidate.kinds) as path:
                known = replace(known, footprint=footprints([path], threads=self.session.model.threads)[0])
        self.known[candidate.name] = known
        return known

    def expected_kl(self, chosen: ShrinkCandidate) -> float | None:
        """Return what the file is forecast to diverge by.

        The prediction is made for weights that were not rounded before; of a quantized model it is scaled by what the
        other files that were measured cost against theirs.
        """
        if chosen.predicted is None or not quantized_already(self.session.model.file):
            return chosen.predicted
        known = [c for c in self.known.values() if c.name != chosen.name and c.divergence and c.predicted]
        ratios = [max(c.divergence.kl.value, 0.0) / c.predicted for c in known if c.divergence and c.predicted]
        return chosen.predicted * statistics.median(ratios) if ratios else chosen.predicted

    def bytes_read(self, candidate: ShrinkCandidate) -> int:
        """Bytes of the file that a token reads."""
        return bytes_read(self.session.model.file, candidate.kinds)

    @cached_property
    def _fixed_bytes(self) -> int:
        """Bytes of a file beside the tensors that have a choice."""
        sizes = self.session.model.costs.num_bytes
        kinds = {name: min(of, key=of.__getitem__) for name, of in sizes.items()}
        return self.session.file_bytes(kinds) - sum(min(of.values()) for of in sizes.values())

    def _candidate(self, name: str, kinds: Mapping[str, str], mix: str | None = None) -> ShrinkCandidate:
        size = self.session.file_bytes(kinds)
        predicted = self.session.model.costs.predicted(kinds)
        # small files differ by less than a tenth of a megabyte, and a candidate is known by its name
        shown = f"{size / 1e6:.1f} MB" if size >= 10_000_000 else f"{size / 1e3:,.1f} kB"
        return ShrinkCandidate(name or f"{self.quantizer.part_name()} {shown}", kinds, size, mix, predicted)
