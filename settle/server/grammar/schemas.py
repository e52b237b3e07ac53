"""JSON schemas in the words of the engine: formats that it does not know as patterns, and counts within its bounds.

llguidance knows `date-time`, `time`, `date`, `duration`, `email`, `hostname`, `ipv4`, `ipv6` and `uuid`. The formats
here are those that pydantic and OpenAPI write beside them. Each pattern allows only what its format allows.
"""

from collections.abc import Mapping
from types import MappingProxyType

from settle.server.errors import invalid
from settle.server.wire_types import JsonObject

# an array's rule grows with its bound: 3 million took 52 s and 5 GB. No context holds more items than this.
MOST_ITEMS = 32_768
COUNTS = ("minItems", "maxItems")

SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
SINGLE = (
    *("items", "additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)

_HEX = "%[0-9A-Fa-f]{2}"
_PATH_CHARACTER = rf"([A-Za-z0-9._~!$&'()*+,;=:@-]|{_HEX})"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_PORT = "(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
_NAME = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"({_NAME}(\.{_NAME})*|{_BYTE}(\.{_BYTE}){{3}}){_PORT}"
_USER = rf"(([A-Za-z0-9._~!$&'()*+,;=-]|{_HEX})+(:([A-Za-z0-9._~!$&'()*+,;=-]|{_HEX})*)?@)?"
_MORE = f"({_PATH_CHARACTER}|[/?])*"
_TAIL = rf"(/{_PATH_CHARACTER}*)*(\?{_MORE})?(#{_MORE})?"
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*"
# RFC 3986, without a host of its own only where such addresses are usual
_URI = rf"({_SCHEME}://{_USER}{_HOST}|file://|(mailto|urn|tel|data|doi|news):{_PATH_CHARACTER}+){_TAIL}"
_RELATIVE = rf"(/|[.][.]?/|[A-Za-z0-9._~-]+){_PATH_CHARACTER.replace(':', '')}*{_TAIL}"
_POINTER = "(/([^/~]|~[01])*)*"


def _uuid(version: int) -> str:
    return f"^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$"


PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("uri", "url", "iri"), f"^{_URI}$"),
        **dict.fromkeys(("uri-reference", "iri-reference"), f"^({_URI}|{_RELATIVE})$"),
        "multi-host-uri": rf"^{_SCHEME}://{_USER}{_HOST}(,{_HOST})*{_TAIL}$",
        "ipvanyaddress": rf"^{_BYTE}(\.{_BYTE}){{3}}$",
        "ipv4interface": rf"^{_BYTE}(\.{_BYTE}){{3}}/(3[0-2]|[12]?[0-9])$",
        "json-pointer": f"^{_POINTER}$",
        "relative-json-pointer": f"^(0|[1-9][0-9]*)(#|{_POINTER})$",
        **dict.fromkeys(("byte", "base64"), "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"),
        "base64url": "^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?$",
        **{f"uuid{version}": _uuid(version) for version in range(1, 9)},
    }
)
NARROWER = MappingProxyType({"idn-email": "email", "idn-hostname": "hostname"})
FREE = frozenset(("password", "binary", "path", "file-path", "directory-path"))  # any text: a hint for people


def engine_schema(schema: JsonObject, param: str) -> JsonObject:
    """The schema as the engine is given it. Raises ApiError for a count that is out of its bounds."""
    _check_numbers(schema, param)
    return _Rewriter(param).schema(schema, ())


def _check_numbers(value: object, param: str) -> None:
    """The engine reads other numbers as the nearest that 64 bits hold."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise invalid(param, f"the engine cannot keep to the number {str(value)[:60]}: it is longer than 64 bits")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_numbers(inner, param)


def without_unknown_formats(schema: JsonObject, param: str) -> JsonObject:
    """The schema for a template that shows it to the model, and for the grammar that the engine makes of it: a format
    that the engine does not know is left out, where a pattern would fill the prompt. Raises ApiError."""
    return _Rewriter(param, has_patterns=False).schema(schema, ())


class _Rewriter:
    """Rewrites the places of a document that are schemas, and leaves its values alone. param: for errors."""

    def __init__(self, param: str, has_patterns: bool = True) -> None:
        self.param, self.has_patterns = param, has_patterns

    def schema(self, schema: JsonObject, place: tuple[str, ...]) -> JsonObject:
        for key in COUNTS:
            count = schema.get(key)
            if isinstance(count, int | float) and count > MOST_ITEMS:
                where = f" of {'.'.join(place)[:200]}" if place else ""
                raise invalid(self.param, f"{key}{where} is {count:,}; the engine keeps to at most {MOST_ITEMS:,}")
        written = {key: self._value(key, value, (*place, key)) for key, value in schema.items()}
        return _with_known_format(written, self.has_patterns)

    def _value(self, key: str, value: object, place: tuple[str, ...]) -> object:
        if key in SCHEMAS and isinstance(value, dict):
            return {name: self._one(inner, (*place, name)) for name, inner in value.items()}
        if isinstance(value, list) and (key in LISTS or key == "items"):
            return [self._one(inner, (*place, str(number))) for number, inner in enumerate(value)]
        return self._one(value, place) if key in SINGLE else value

    def _one(self, value: object, place: tuple[str, ...]) -> object:
        return self.schema(value, place) if isinstance(value, dict) else value


def _with_known_format(schema: JsonObject, has_patterns: bool) -> JsonObject:
    name = schema.get("format")
    if not isinstance(name, str):
        return schema
    rest = {key: value for key, value in schema.items() if key != "format"}
    if name in FREE or (name in PATTERNS and not has_patterns):
        return rest
    if name in NARROWER:
        return rest | {"format": NARROWER[name]}
    if name not in PATTERNS:
        return schema
    if "pattern" not in rest:
        return rest | {"pattern": PATTERNS[name]}
    both = rest.get("allOf")
    return rest | {"allOf": [*(both if isinstance(both, list) else []), {"pattern": PATTERNS[name]}]}
