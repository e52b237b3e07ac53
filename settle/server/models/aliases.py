"""Other names for adapters, as clients gave them with Ollama's copy and create: home()/server/aliases.json."""

import json

from settle.base.run import home, write_json


def aliases() -> dict[str, str]:
    """Name → id of what it names. Empty where nothing was written, or it is damaged."""
    try:
        found = json.loads((home() / "server" / "aliases.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(of) for name, of in found.items()} if isinstance(found, dict) else {}


def set_alias(name: str, of: str | None) -> None:
    """Name it, or with None forget the name. Raises OSError when that cannot be written."""
    known = aliases()
    known.pop(name, None)
    known |= {name: of} if of is not None else {}
    (home() / "server").mkdir(parents=True, exist_ok=True)
    write_json(home() / "server" / "aliases.json", known)
