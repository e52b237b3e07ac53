"""Models on the hub: `owner/name`, with `@revision`, and `:part of a file's name` where a repository holds several."""

import contextlib
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from settle.audit.session import declare, declare_proxies
from settle.base.errors import FormatError, ResourceError, SettleError, UsageError, no_room
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.words.amounts import megabytes
from settle.formats.safetensors import INDEX, SINGLE
from settle.library.pull import Offer, OfferFacts
from settle.library.store import model_name
from settle.model.source import hash_of

ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w.-]+))?")
POOLING_FILE = "1_Pooling/config.json"  # where sentence-transformers keeps it
BESIDE = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "tokenizer.model", POOLING_FILE,
)  # fmt: skip
_OF_ENCODERS = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
_DENSE = re.compile(r"\d_Dense/(config\.json|model\.safetensors)")  # modules of sentence-transformers
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def offer(what: str) -> Offer | None:
    """Return a model of the hub; None when `what` is no hub id."""
    match = ID.fullmatch(what)
    if match is None:
        return None
    repo, revision, part = match["repo"], match["revision"], match["file"]
    name = model_name(repo if not part else f"{repo}-{part}").removesuffix("-gguf")

    def fetch(folder: Path, events: Events) -> Path:
        return _fetch(repo, revision, part, folder, events)

    def facts() -> OfferFacts:
        with _translated(repo, revision):
            found = _find(repo, revision, part)
        return OfferFacts(host(), found.num_bytes, tuple(found.sizes))

    return Offer("hub", what, name, fetch, facts=facts)


def host() -> str:
    """Return the hub's host, as the environment sets it."""
    from huggingface_hub.constants import ENDPOINT

    return urllib.parse.urlsplit(ENDPOINT).hostname or ""


@dataclass(frozen=True)
class _Found:
    """The files of a repository that make up the model, with their sizes, and the hashes that the hub says."""

    revision: str | None
    sizes: dict[str, int]
    hashes: dict[str, str]

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes.values())


def _find(repo: str, revision: str | None, part: str | None) -> _Found:
    from huggingface_hub import HfApi

    declare(host(), f"the hub, for {repo}")
    declare("hf.co", "where the hub keeps files")
    declare_proxies()
    info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    sizes = {s.rfilename: s.size or 0 for s in info.siblings or [] if ".." not in s.rfilename.split("/")}
    hashes = {s.rfilename: s.lfs.sha256 for s in info.siblings or [] if s.lfs}
    return _Found(info.sha, {name: sizes[name] for name in _choose(repo, sizes, part)}, hashes)


def _fetch(repo: str, revision: str | None, part: str | None, folder: Path, events: Events) -> Path:
    from huggingface_hub import hf_hub_download

    with _translated(repo, revision):
        found = _find(repo, revision, part)
        free = shutil.disk_usage(folder).free
        if free < found.num_bytes:
            raise no_room("the model", found.num_bytes, free, folder.parent)
        bar = _bar(events, found.num_bytes)
        for name in found.sizes:
            hf_hub_download(repo, name, revision=found.revision, local_dir=folder, tqdm_class=bar)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for name in found.sizes:
        if name in found.hashes and hash_of(folder / name) != found.hashes[name]:
            raise FormatError(f"{name} is not what the hub says it is", "pull it again")
    first = next(iter(found.sizes))
    if first.endswith(".gguf"):
        return folder / first
    entries, model = list(folder.iterdir()), folder / "model"
    model.mkdir()
    for entry in entries:
        entry.rename(model / entry.name)
    return model


@contextlib.contextmanager
def _translated(repo: str, revision: str | None) -> Iterator[None]:
    """Errors of the hub's library as settle's."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError:
        raise UsageError(f"{repo} has no revision {revision!r} on the hub", "check it after the @") from None
    except (RepositoryNotFoundError, HFValidationError):
        fix = "check the name; one that is not public needs `hf auth login`, and its terms accepted"
        raise UsageError(f"there is no model {repo!r} on the hub", fix) from None
    except (*HfHubHTTPError.__bases__, LocalEntryNotFoundError) as e:  # type: ignore[misc]  # of the HTTP library that it uses
        if isinstance(e, SettleError) or isinstance(e, OSError) and e.filename is not None:
            raise
        line = (str(e).strip().splitlines() or [type(e).__name__])[0][:300]
        raise ResourceError(f"the hub could not be read: {line}", "check the connection, then again") from None


def _choose(repo: str, sizes: dict[str, int], part: str | None) -> list[str]:
    """Choose the files that make up the model: safetensors if there are any and no GGUF file is asked for."""
    ggufs = [n for n in sizes if n.endswith(".gguf") and not n.rpartition("/")[2].startswith("mmproj")]
    weights = [n for n in sizes if n in (SINGLE, INDEX) or re.fullmatch(r"model-\d+-of-\d+\.safetensors", n)]
    if part is not None:
        matches = [n for n in ggufs if part.lower() in n.lower()]
        if len(matches) != 1:
            number = "no file" if not matches else f"{len(matches)} files"
            raise UsageError(f"{number} of {repo} are called {part!r}", _listed(matches or ggufs, sizes))
        return matches
    if weights:
        return weights + [name for name in sizes if name in (*BESIDE, *_OF_ENCODERS) or _DENSE.fullmatch(name)]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise UsageError(f"{repo} holds {len(ggufs)} GGUF files", f"add one after a colon; {_listed(ggufs, sizes)}")
    pickles = [n for n in sizes if n.endswith(PICKLES)]
    if pickles:
        what = f"{repo} has its weights only as pickle ({pickles[0]}), and opening one runs any code that is in it"
        raise FormatError(what, "choose a model with safetensors or GGUF")
    raise FormatError(f"{repo} holds no weights that are read here", "safetensors and GGUF are read")


def _listed(names: list[str], sizes: dict[str, int]) -> str:
    return "there are: " + ", ".join(f"{name} ({megabytes(sizes[name])})" for name in names[:20])


def _bar(events: Events, total: int) -> type:
    """Return a progress bar class for the hub's library, which emits events instead of drawing."""
    from huggingface_hub.utils.tqdm import tqdm

    done = [0]

    class Bar(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            done[0] = min(done[0] + int(n or 0), total)
            events.emit(Progress(what="downloading", done=done[0], total=total, unit="bytes"))

    return Bar
