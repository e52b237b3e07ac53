"""The key that requests must carry: made on first start, readable by its owner only."""

import os
import re
import secrets
from pathlib import Path

from settle.base.errors import ResourceError, UsageError
from settle.base.run import home, write_atomic

USABLE = re.compile(r"[\x21-\x7e]{16,256}")


def key_file() -> Path:
    return home() / "server" / "key"


def server_key(make: bool = True) -> str | None:
    """The key of this machine's server; a new one when there is none yet, or None where it is not to be made. Raises
    ResourceError, and UsageError when others may read the file."""
    path = key_file()
    try:
        if not path.exists():
            if not make:
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.parent.chmod(0o700)
            before = os.umask(0o077)  # it must not be readable by others for even a moment
            try:
                write_atomic(path, f"sk-settle-{secrets.token_urlsafe(24)}\n")
            finally:
                os.umask(before)
        if os.name != "nt" and path.stat().st_mode & 0o077:
            raise UsageError(f"others may read {path}", f"chmod 600 {path}; better, delete it: a new key is made")
        key = path.read_text(encoding="utf-8").strip()
    except OSError as e:
        raise ResourceError(f"cannot keep a key in {path}: {e.strerror}", "make room or permission there") from None
    if not USABLE.fullmatch(key):
        raise UsageError(f"{path} holds no usable key", "delete it: a new one is made")
    return key
