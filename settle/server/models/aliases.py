"""Further names of adapters, as clients set them with Ollama's copy and create: home()/server/aliases.json."""

from filelock import FileLock

from settle.base.files import home, parse_json, write_json

LOCK_SECONDS = 10.0


def aliases() -> dict[str, str]:
    """Name → id of what it names. Empty when the file is missing or damaged."""
    try:
        names = parse_json((home() / "server" / "aliases.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(target) for name, target in names.items()} if isinstance(names, dict) else {}


def set_alias(name: str, target: str | None) -> None:
    """Sets the name, or removes it when `target` is None. Raises OSError when the file cannot be written."""
    folder = home() / "server"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "aliases.lock", LOCK_SECONDS):  # requests run in threads, and other servers may be there
        known = aliases()
        known.pop(name, None)
        known |= {name: target} if target is not None else {}
        write_json(folder / "aliases.json", known)
