"""The fields of requests, with their ranges. A field that is not declared is an error; none is ignored."""

import json
import math
from typing import Annotated, ClassVar, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from settle.wire.errors import ApiError, invalid
from settle.wire.types import JsonObject

MOST_CONTAINERS, MOST_VALUES = 1 << 18, 1 << 21  # of JSON: what parses in half a second
PIECE_BYTES = 1 << 18  # of a body, counted at a time
DEEPEST = 100  # levels of JSON
LONGEST_NAME = 256
MOST_TOKENS = 1 << 24
UINT32, INT32 = (1 << 32) - 1, (1 << 31) - 1

Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Stop = str | list[str] | None
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=0, le=1e4)]
Count = Annotated[int, Field(ge=0, le=INT32)]


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Adapter(Body):
    """A LoRA to apply, by its name or that of its run."""

    id: Name
    scale: float = Field(1.0, ge=-16, le=16)


class Sampling(Body):
    """How the next token is drawn, under OpenAI's names where they exist, else llama.cpp's."""

    NAMES: ClassVar[dict[str, str]] = {"repetition_penalty": "repeat_penalty"}

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32)] | None = None
    min_p: Share | None = None
    typical_p: Share | None = None
    top_n_sigma: Annotated[float, Field(ge=-1, le=100)] | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None
    dynatemp_range: Positive | None = None
    dynatemp_exponent: Positive | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    repeat_last_n: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    dry_multiplier: Positive | None = None
    dry_base: Annotated[float, Field(ge=1, le=1e4)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    dry_sequence_breakers: Annotated[list[str], Field(min_length=1, max_length=64)] | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Positive | None = None
    mirostat_eta: Positive | None = None
    min_keep: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 64) - 1)] | None = None
    logit_bias: dict[str, float] | None = None
    samplers: Annotated[list[Name], Field(max_length=32)] | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None

    def llama(self) -> JsonObject:
        """Return the fields that are set, under llama.cpp's names."""
        values = {name: getattr(self, name) for name in Sampling.model_fields}
        fields = {self.NAMES.get(name, name): value for name, value in values.items() if value is not None}
        if self.seed is not None:
            fields["seed"] = self.seed % (UINT32 + 1)  # llama.cpp's seeds are 32 bits wide
        if self.top_k == -1:
            fields["top_k"] = 0
        if self.logit_bias is not None:
            fields["logit_bias"] = _biases(self.logit_bias)
        return fields


BodyT = TypeVar("BodyT", bound=BaseModel)


def parse(raw: bytes) -> object:
    """Return JSON without NaN, broken characters, deep nesting or millions of values. Raises ApiError."""
    _check_amount(raw)
    try:
        value: object = json.loads(raw, parse_constant=_no_constant)
    except RecursionError:
        raise ApiError(400, f"the body is nested deeper than {DEEPEST} levels", "invalid_json") from None
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8", "invalid_json") from None
    except ValueError as e:
        raise ApiError(400, f"the body is not JSON: {str(e)[:200]}", "invalid_json") from None
    _check_depth(value)
    if b"\\ud" in raw or b"\\uD" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ApiError(400, "the body holds half of a surrogate pair", "invalid_json") from None
    return value


def validated(model: type[BodyT], value: object, where: str = "") -> BodyT:
    """Return a parsed body, or the part of one at the path `where`, as a model.

    Raises ApiError that names the field at fault."""
    if not isinstance(value, dict):
        no_object = ApiError(400, "the body must be a JSON object", "invalid_json")
        raise invalid(where, "must be an object") if where else no_object
    try:
        return model.model_validate(value)
    except ValidationError as e:
        raise _at_fault(e, where) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deep", "invalid_json") from None


def effort_arguments(effort: str | None) -> JsonObject:
    """Return the effort of reasoning as arguments of a chat template."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort} | ({"enable_thinking": False} if effort == "none" else {})


def stops(stop: Stop, param: str = "stop") -> list[str]:
    """Return stop strings as a list. Raises ApiError."""
    texts = [stop] if isinstance(stop, str) else stop or []
    if len(texts) > 16 or any(not text or len(text) > 1024 for text in texts):
        raise invalid(param, "1 to 16 texts of 1 to 1,024 characters")
    return texts


def _at_fault(error: ValidationError, where: str) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    # a union reports each of its types, whose names are no part of the path
    path = ".".join(str(p) for p in first["loc"] if not (isinstance(p, str) and ("[" in p or p in _KINDS)))
    path = ".".join(part for part in (where, path) if part)
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unrecognized request argument: {path[:200]}", "unknown_parameter", path[:200])
    if first["type"] == "missing":
        return ApiError(400, f"{path} is missing", "missing_required_parameter", path)
    return invalid(path or None, first["msg"][:1].lower() + first["msg"][1:])


_KINDS = {"str", "int", "float", "bool", "list", "dict", "constrained-str", "constrained-int", "constrained-float"}


def _biases(by_token: dict[str, float]) -> list[tuple[int, float]]:
    biases = []
    for token, bias in by_token.items():
        if not token.isascii() or not token.isdigit() or len(token) > 9:
            raise invalid("logit_bias", f"{token[:40]!r} is not a token id")
        if not math.isfinite(bias) or abs(bias) > 100:
            raise invalid(f"logit_bias.{token}", "between -100 and 100")
        biases.append((int(token), float(bias)))
    return biases


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_amount(raw: bytes) -> None:
    """Reject a body of too much before it is parsed: nobody else is answered while that takes its seconds.

    Piece by piece, so that this ends early."""
    if not _is_much(*_amounts(raw)):
        return
    raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    num_containers = num_values = in_text = 0
    for start in range(0, len(raw), PIECE_BYTES):
        pieces = raw[start : start + PIECE_BYTES].split(b'"')
        containers, values = _amounts(b"".join(pieces[in_text::2]))  # outside of texts, which may hold any sign
        num_containers, num_values = num_containers + containers, num_values + values
        if _is_much(num_containers, num_values):
            message = f"the body holds more than {MOST_CONTAINERS:,} lists and objects, or {MOST_VALUES:,} values"
            raise ApiError(413, message, "body_too_large")
        in_text ^= len(pieces) % 2 == 0


def _amounts(raw: bytes) -> tuple[int, int]:
    """Brackets that open a list or an object, and commas."""
    return raw.count(b"[") + raw.count(b"{"), raw.count(b",")


def _is_much(num_containers: int, num_values: int) -> bool:
    return num_containers > MOST_CONTAINERS or num_values > MOST_VALUES


def _check_depth(value: object) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ApiError(400, f"the body is nested deeper than {DEEPEST} levels", "invalid_json")
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
