"""Why a file does not behave like the model: its header and tensors against what the model would have written.

Behaviour decides whether a file is refused; this only names the reason. O outputs, I inputs of a linear, r rank.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from settle.formats import AdapterWeights, TensorLike, Weights, to_float32
from settle.formats.gguf import rounded
from settle.formats.gguf.types import ggml_type
from settle.formats.lora_gguf import pair_from_gguf
from settle.model.architectures import Architecture

LEAST_KEPT = 0.5  # minimum share of an adapter's change that a merged file must hold
STALE = 0.3  # of a tensor's own length: rows in another order are further off, values of another step are nearer
MOST_SHOWN = 3


@dataclass(frozen=True)
class Origin:
    """What a file was made from.

    part: the architecture. weights: parameter name → tensor, as the file should hold them. base: the same before an
    adapter was merged into them, None where there was none. adapter: when it lies in a file of its own, over the
    base's file. foreign: whether the file's header was written by others. is_own: whether settle's own quantizer made
    its blocks, without importance.
    """

    part: Architecture
    weights: Mapping[str, TensorLike]
    base: Mapping[str, TensorLike] | None = None
    adapter: AdapterWeights | None = None
    foreign: bool = False
    is_own: bool = True


@dataclass(frozen=True)
class Contents:
    """What was found in a file.

    kept: how much of a merged adapter's change is in it, 1 all of it and 0 none, None where nothing was merged. damage:
    what its tensors are instead of the model's.
    """

    kept: float | None
    damage: list[str]


def kept_text(share: float) -> str:
    """Say how much of an adapter's change a merged file holds.

    A share far from 0 to 1 counts as none: the rounding of the type is larger than the change, and what is found along
    it is by chance.
    """
    if -0.05 <= share <= 1.05:
        return f"keeps {max(share, 0.0):.0%} of the adapter's change to the weights"
    return "changes the weights more by rounding than the adapter does"


def causes(origin: Origin, file: Weights, contents: Contents, lora: Weights | None = None) -> list[str]:
    """Say what is wrong with a file, the likeliest cause first; empty when it holds just what it should.

    lora: the adapter's file over it.
    """
    return [*header(origin, file), *adapter(origin, lora, contents.kept), *contents.damage]


def inspect(origin: Origin, file: Weights) -> Contents:
    """Every tensor of a file beside the one that it was made from, one at a time in memory.

    What is kept of an adapter is the file's own change to the base, projected on the adapter's: rounding is not along
    it and averages out, unless the steps of a coarse type swallow the change itself.
    """
    names = origin.part.gguf_names()
    lacking = [names[name] for name in origin.weights if name in names and names[name] not in file.tensors]
    permuted: list[str] = []
    damaged: list[str] = []
    rows: list[str] = []
    along = square = 0.0
    for parameter, name, stored in _stored(origin.part, file):
        if parameter not in origin.weights:
            continue
        wanted = to_float32(origin.weights[parameter])
        there = np.asarray(origin.part.from_gguf_tensor(parameter, stored))
        there = there.reshape(wanted.shape) if there.size == wanted.size else there  # taps of a convolution
        if wanted.shape != there.shape:
            damaged.append(name)
            continue
        if origin.base is not None and parameter in origin.base:
            base = to_float32(origin.base[parameter])
            change = wanted - base
            along += float(np.vdot(change, there - base))
            square += float(np.vdot(change, change))
        kind = file.tensors[name].dtype
        most = ggml_type(kind).rounding
        is_near = _error(there, wanted) <= most  # so that NaN is damage
        written = np.asarray(origin.part.to_gguf(parameter, wanted))
        bad = damaged_rows(stored.reshape(written.shape), written, kind, origin.is_own)
        if len(bad) and (is_near or 2 * len(bad) < len(written)):
            rows.append(f"{name} ({len(bad)} of {len(written)}, the first is {bad[0]})")
        elif not is_near:
            error = _error(there, wanted)
            is_order = wanted.ndim == 2 and error > STALE and _rows_alike(there, wanted, most)
            share = f" ({error:.2%} off: an older copy of it, or changed since)" if error <= STALE else ""
            (permuted if is_order else damaged).append(name + share)
    damage = [f"{len(lacking)} tensors are not in the file, the first is {lacking[0]}"] if lacking else []
    if permuted:
        what = "queries and keys are permuted" if any("attn_" in n for n in permuted) else "rows are permuted"
        damage.append(f"{what}: rows in another order than llama.cpp's in {_listed(permuted)}")
    if damaged:
        damage.append(f"not the model's values in {_listed(damaged)}")
    if rows:
        damage.append(f"not the model's values in rows of {_listed(rows)}")
    return Contents(along / square if square else None, damage)


def _stored(part: Architecture, file: Weights) -> Iterator[tuple[str, str, np.ndarray]]:
    """(parameter, the file's tensor, its values in the file's order of rows), one tensor in memory at a time."""
    for name, parameters in part.gguf_members().items():
        if name in file.tensors:
            values = file.tensors[name].load()
            for number, parameter in enumerate(parameters):
                yield parameter, name, values[number] if len(parameters) > 1 else values


def header(origin: Origin, file: Weights) -> Iterator[str]:
    """Compare what the header makes llama.cpp compute with what the model computes; some shows in no short text.

    A file that others wrote (the base under an adapter, say) may leave out what llama.cpp takes as its default.
    """
    part, foreign = origin.part, origin.foreign or origin.adapter is not None
    wanted = {"general.architecture": part.gguf_family, **part.gguf_metadata()}
    for key, value in wanted.items():
        there = file.metadata.get(key)
        if not (foreign if there is None else _same(value, there)):
            says = "is not in the file" if there is None else f"is {there} in the file"
            yield f"{_topic(key)}: {key} {says}, {value} in the model"
    for key, there in file.metadata.items():
        if (
            not foreign
            and key not in wanted
            and (".rope." in key or "softcapping" in key)
            and not _harmless(key, there)
        ):
            yield f"{_topic(key)}: {key} is {there} in the file, and the model has none"
    yield from _constants(part, file)


def _same(ours: object, theirs: object) -> bool:
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        whole = isinstance(ours, int) and isinstance(theirs, int)
        return ours == theirs if whole else math.isclose(ours, theirs, rel_tol=1e-5, abs_tol=1e-12)
    return bool(ours == theirs)


def _harmless(key: str, value: object) -> bool:
    """Return whether a key is a default that is written out, or what llama.cpp does not read."""
    return key.endswith((".finetuned", ".original_context_length", ".dimension_count")) or value in (1.0, "none")


def _topic(key: str) -> str:
    if ".rope." in key:
        return "the RoPE scale is wrong"
    if "softcapping" in key:
        return "the soft-cap is wrong"
    return "the header is wrong"


def _constants(part: Architecture, file: Weights) -> Iterator[str]:
    wanted = part.gguf_constants()
    for name in sorted({*wanted, *(n for n in file.tensors if n.startswith("rope_"))}):
        tensor = file.tensors.get(name)
        if tensor is None or name not in wanted:
            yield f"the RoPE scale is wrong: {name} is {'not in the file' if tensor is None else 'only in the file'}"
        elif not np.allclose(tensor.load(), wanted[name], rtol=1e-4):
            yield f"the RoPE scale is wrong: {name} holds other factors than the model's"


def adapter(origin: Origin, lora: Weights | None, share: float | None) -> Iterator[str]:
    """Check that the adapter is in the file, merged, or in its own; a weak one that is lost hardly shows otherwise.

    share: what `inspect` found of it.
    """
    if origin.adapter is not None:
        yield from _lora(origin.part, origin.adapter, lora)
    if share is not None and not LEAST_KEPT <= share <= 2 - LEAST_KEPT:
        yield f"the adapter is lost: the file {kept_text(share)}"


def _lora(part: Architecture, adapter: AdapterWeights, lora: Weights | None) -> Iterator[str]:
    """Compare an adapter in a file of its own: pairs, their product, and the scale."""
    if lora is None:
        yield "the adapter is lost: its file was not loaded over the base's"
        return
    assert adapter.lora is not None, "no other method has a file of its own"
    names, lost = part.gguf_names(), []
    stacks = part.gguf_members()
    for module, parameter in adapter.parameters(part).items():
        name = names[parameter]
        tensors = [lora.tensors.get(name + half) for half in (".lora_a", ".lora_b")]
        if None in tensors:
            lost.append(module)
            continue
        number = stacks[name].index(parameter)
        down, up = (t.load()[number] if len(stacks[name]) > 1 else t.load() for t in tensors if t is not None)
        ours = adapter.lora.pairs[module]
        there = pair_from_gguf(part, parameter, down, up)
        scale, wanted = lora.metadata["adapter.lora.alpha"] / down.shape[0], adapter.lora.alpha / len(ours[0])
        if not np.allclose(there[0], ours[0], rtol=1e-2, atol=1e-6):
            yield f"the adapter is another one: A of {module} differs"
        elif not np.allclose(there[1], ours[1], rtol=1e-2, atol=1e-6):
            mixed = np.allclose(up, ours[1], rtol=1e-2, atol=1e-6)
            yield f"{'queries and keys are permuted' if mixed else 'the adapter is another one'}: B of {module} differs"
        elif not math.isclose(scale, wanted, rel_tol=1e-4):
            yield f"the adapter's scale is {scale:g} in the file, {wanted:g} in the model"
            return
    if lost:
        yield f"the adapter is lost in {len(lost)} of {len(adapter.modules)} modules, the first is {lost[0]}"


def _error(there: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((there - wanted) ** 2) / max(float(np.mean(wanted**2)), 1e-30)))


def _rows_alike(there: np.ndarray, wanted: np.ndarray, most: float) -> bool:
    """Return whether the two have the same rows in some order, by the lengths of the rows."""
    lengths = (np.sort(np.linalg.norm(side, axis=1)) for side in (there, wanted))
    return _error(*lengths) <= most


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more


TIMES = 3.0  # how often the error of even rounding is allowed, where the quantizer weighs values by importance
LARGEST = 0.97  # of a row's own length: of what is further off, nothing of the row is left
CHUNK = 1 << 22  # values that are compared at once
REORDERED = 1e-6  # of a row's own length: what sums in another order, of a merged weight, may change


def damaged_rows(there: np.ndarray, wanted: np.ndarray, kind: str, is_own: bool) -> np.ndarray:
    """Return the rows of `there` (R, C) that are not `wanted`'s (R, C) to within what its type rounds.

    kind: the file's type. is_own: whether settle's own quantizer made it, without importance. Then a row must be what
    that gives, to within its rounding; otherwise to within the steps of the type in the row's own blocks.
    """
    if wanted.ndim != 2:
        return np.flatnonzero(~np.isclose(there, wanted, rtol=1e-3, atol=1e-6).reshape(len(wanted), -1).all(1))
    size = max(1, CHUNK // wanted.shape[1])
    pieces = [slice(first, first + size) for first in range(0, len(wanted), size)]
    bad = [_damaged(there[p], wanted[p], kind, is_own) for p in pieces]
    return np.flatnonzero(np.concatenate(bad))


def _damaged(there: np.ndarray, wanted: np.ndarray, kind: str, is_own: bool) -> np.ndarray:
    """Which rows of a part are: (R,) bool."""
    length = _lengths(wanted)
    if is_own or not ggml_type(kind).quantized:
        exact = rounded(wanted, kind)
        off, allowed = _lengths(there - exact), _lengths(exact - wanted) + REORDERED * length
    else:
        off, allowed = _lengths(there - wanted), np.minimum(_step_errors(wanted, kind), LARGEST * length)
    bad: np.ndarray = ~(off <= allowed)  # so that NaN is damage
    return bad


def _step_errors(wanted: np.ndarray, kind: str) -> np.ndarray:
    """Return TIMES the length of the error of each row (R,) that is rounded to even steps.

    The steps go over twice the largest value of each of its blocks.
    """
    bits = next(int(letter) for letter in kind if letter.isdigit())  # ggml's names say those of a value
    steps, size = 2.0**bits - 1, ggml_type(kind).block
    largest = np.abs(wanted.reshape(len(wanted), -1, size)).max(2)
    errors: np.ndarray = TIMES * _lengths(2 * largest / steps) * np.sqrt(size / 12)
    return errors


def _lengths(rows: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.linalg.norm(rows, axis=1)
    return out
