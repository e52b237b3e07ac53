"""Build the wheel and the sdist, and install the wheel into empty environments, as people do. Prints a table.

    python bench/install.py [--parts build,extras,tools] [--dist FOLDER]
                            [--pythons python3.11 python3.12] [--extras base serve shrink rag studio chroma mcp all]

build: both files are built twice, from copies of the tree with other names, times and modes, to the same bytes;
twine finds no fault, and the wheel's data is small. `make dist` keeps them in dist/.
extras: for each Python and extra an empty environment, by pip: its size, what it can do (training, tuning and chatting
in all of them), and what it says is missing; then `pip uninstall`, which leaves nothing.
tools: the same wheel by pipx, `uv tool install` and `uvx --from`, which come from the package index. uv takes builds
of torch that pip's settings name (PIP_FIND_LINKS) before those of the index.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.journey import TINY, make_inputs  # noqa: E402

MOST_DATA_BYTES = 12 << 20  # what is not Python in the wheel, unpacked
BIN = "Scripts" if os.name == "nt" else "bin"
EXTRAS = ("base", "serve", "shrink", "rag", "studio", "chroma", "mcp", "all")
TUNE = "--steps 8 --threads 1 --dtype float32 --batch-rows 4 --compare-rows 6"
BASE = (
    "--version",
    f"train notes --name notes {TINY}",
    f"tune notes examples.jsonl --name mine {TUNE}",
    "chat mine 'Ticket 1: my phone is broken. Which queue?' --max-tokens 6",
)
# What an extra is for; without it the same command names the extra.
WITH = {
    "serve": "serve notes --port 0",
    "shrink": "shrink notes --to Q4_0 --no-compare",
    "rag": "index docs --name docs",
    "studio": "studio --port 0 --no-browser",
    "chroma": "index docs --name vectors --store chroma",
}
HOLDS = {"studio": ("serve", "rag"), "chroma": ("rag",), "mcp": ("serve", "rag"), "all": tuple(WITH)}
UP = ("127.0.0.1:", "localhost:")  # a server has started when it says where
LIMIT = 900  # seconds of one command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="build,extras,tools")
    parser.add_argument("--dist", type=Path)
    parser.add_argument(
        "--release", metavar="TAG", help="also check that the tag is this version's, and CHANGELOG.md dates it"
    )
    parser.add_argument("--pythons", nargs="+", default=[sys.executable])
    parser.add_argument("--extras", nargs="+", choices=EXTRAS, default=EXTRAS)
    given = parser.parse_args()
    if given.release and (fault := unfit_for_release(given.release)):
        raise SystemExit(fault)
    with tempfile.TemporaryDirectory(prefix="settle-install-") as folder:
        work = Path(folder)
        wheel = build(work, given.dist.absolute() if given.dist else work / "dist", "build" in given.parts)
        make_inputs(work)
        os.chdir(work)
        rows: list[tuple[str, str]] = []
        if "extras" in given.parts:
            for python in given.pythons:
                rows += [row for extra in given.extras for row in extra_of(python, extra, wheel, work)]
        if "tools" in given.parts:
            rows += tools(wheel, work)
    for what, fault in rows:
        print(f"{what}: {fault or 'ok'}")
    sys.exit(any(fault for _, fault in rows))


# --- building ---


def unfit_for_release(tag: str) -> str:
    """Return why this tree is not what the tag says, or "" if it is."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    if tag != f"v{version}":
        return f"the tag {tag} is not v{version}, the version in pyproject.toml"
    heading = re.search(rf"^## {re.escape(version)} – (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    if not heading or not re.fullmatch(r"\d{4}-\d\d-\d\d|\d{1,2} \w+ \d{4}", heading[1]):
        return f"CHANGELOG.md gives no date for {version}: write `## {version} – 2027-01-31`"
    return ""


def tracked() -> list[Path]:
    """Return the files of the tree that a clone has, and new ones that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def built(folder: Path, copy: str, *, days_ago: int, mode: int) -> list[Path]:
    """Build both files from a copy of the tree, and return their paths: the sdist, and the wheel made from it."""
    tree = folder / copy / "settle"
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
        (tree / name).chmod(mode)
        when = time.time() - 86400 * days_ago
        os.utime(tree / name, (when, when))
    out = folder / copy / "dist"
    made = []
    for target, source in (("sdist", tree), ("wheel", None)):
        if source is None:
            shutil.unpack_archive(made[0], folder / copy / "from")
            (source,) = (folder / copy / "from").iterdir()
        line = [sys.executable, "-P", "-m", "hatchling", "build", "-t", target, "-d", str(out)]
        subprocess.run(line, cwd=source, check=True, capture_output=True, text=True)
        made += [path for path in out.iterdir() if path not in made]
    return made


def build(work: Path, dist: Path, twice: bool) -> Path:
    """Build both files into `dist`, checked if `twice`, and return the wheel. Raises SystemExit with what is wrong."""
    first = built(work, "first", days_ago=0, mode=0o644)
    dist.mkdir(parents=True, exist_ok=True)
    for path in first:
        shutil.copyfile(path, dist / path.name)
    sdist, wheel = (dist / path.name for path in first)
    if twice:
        for mine, other in zip(first, built(work, "second", days_ago=400, mode=0o600), strict=True):
            if mine.read_bytes() != other.read_bytes():
                raise SystemExit(f"{mine.name}: two builds differ")
        num_bytes = data_bytes(wheel)
        if num_bytes > MOST_DATA_BYTES:
            raise SystemExit(
                f"{wheel.name} has {num_bytes / 1e6:.1f} MB of data, more than {MOST_DATA_BYTES / 1e6:.1f}"
            )
        if fault := checked_by_twine(work, [wheel, sdist]):
            raise SystemExit(fault)
        for path in (wheel, sdist):
            print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, built twice to the same bytes")
        print(f"data in the wheel: {num_bytes / 1e6:.1f} MB unpacked")
    return wheel


def data_bytes(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(i.file_size for i in archive.infolist() if not i.filename.endswith(".py"))


def checked_by_twine(work: Path, files: list[Path]) -> str:
    """Return what twine, in an environment of its own, finds wrong with the files' metadata."""
    python = environment(sys.executable, work / "twine")
    run([str(python), "-m", "pip", "install", "--quiet", "twine"])
    code, said = run([str(python), "-m", "twine", "check", "--strict", *map(str, files)])
    return said if code else ""


# --- installing ---


def run(line: list[str], **environ: str) -> tuple[int, str]:
    """Run a command without a terminal; return its exit code and its words."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        line,
        env=clean | environ,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=LIMIT,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout + done.stderr


def environment(python: str, folder: Path) -> Path:
    """Make an empty environment; return its Python."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    return folder / BIN / "python"


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def extra_of(python: str, extra: str, wheel: Path, work: Path) -> Iterator[tuple[str, str]]:
    """Install one extra into an empty environment, try it, and uninstall it. Yields what was tried, and its fault."""
    place = work / "environment"
    own = environment(python, place)
    version = run([str(own), "-c", "import platform; print(platform.python_version())"])[1].strip()
    empty, began = size_of(place), time.monotonic()
    wanted = f"{wheel}[{extra}]" if extra != "base" else str(wheel)
    code, said = run([str(own), "-m", "pip", "install", "--quiet", wanted])
    took, size = time.monotonic() - began, (size_of(place) - empty) / 1e6
    print(f"Python {version}, {extra}: {size:,.0f} MB, installed in {took:.0f} s", flush=True)
    yield f"Python {version}, {extra}: pip install", said[-500:] if code else ""
    if not code:
        home = {"SETTLE_HOME": str(work / f"home-{extra}")}
        for command, fault in tried([str(own.parent / "settle")], extra, home):
            yield f"Python {version}, {extra}: settle {command}", fault
        run([str(own), "-m", "pip", "uninstall", "--quiet", "--yes", "settle-lm"])
        left = [path for path in place.rglob("*settle*") if path.name != "__pycache__"]
        yield f"Python {version}, {extra}: pip uninstall", f"leaves {left[:3]}" if left else ""
    shutil.rmtree(place)


def tried(settle: list[str], extra: str, home: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each command that an environment with this extra is asked, and what is wrong with the answer."""
    for command in BASE:
        code, said = run([*settle, *shlex.split(command)], **home)
        yield command, "" if code in (0, 3) and "Traceback" not in said else said[-500:]
    for needed, command in WITH.items():
        if needed == extra or needed in HOLDS.get(extra, ()):
            server = command.startswith(("serve", "studio"))
            yield command, (started if server else done)([*settle, *shlex.split(command)], home)
        else:
            code, said = run([*settle, *shlex.split(command)], **home)
            honest = code == 2 and f"[{needed}]" in "".join(said.split())
            # The store of vectors is asked for after the documents' extra, which it needs too.
            honest = honest or (needed == "chroma" and code == 2 and "[rag]" in "".join(said.split()))
            yield f"{command} (without its extra)", "" if honest and "Traceback" not in said else said[-500:]


def done(line: list[str], home: dict[str, str]) -> str:
    code, said = run(line, **home)
    return "" if code in (0, 3) and "Traceback" not in said else said[-500:]


def started(line: list[str], home: dict[str, str]) -> str:
    """Start a server, wait for its address, and end it. Return what is wrong."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(line, env=clean | home, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until, said = time.monotonic() + LIMIT, ""
        while process.poll() is None and time.monotonic() < until and not any(place in said for place in UP):
            time.sleep(0.5)
            log.seek(0)
            said = log.read()
        process.terminate()
        process.wait(60)
    return "" if any(place in said for place in UP) and "Traceback" not in said else said[-500:] or "it said nothing"


def tools(wheel: Path, work: Path) -> Iterator[tuple[str, str]]:
    """Yield how pipx and uv install and run the wheel, each with folders of its own, and what is wrong."""
    python = environment(sys.executable, work / "installers")
    run([str(python), "-m", "pip", "install", "--quiet", "pipx", "uv"])
    bin_, own = python.parent, work / "own"
    links = os.environ.get("PIP_FIND_LINKS", "")
    uv = {"UV_TOOL_DIR": str(own / "tools"), "UV_TOOL_BIN_DIR": str(own / "uv"), "UV_CACHE_DIR": str(own / "cache"),
          "UV_PYTHON_DOWNLOADS": "never", "UV_FIND_LINKS": links, "UV_PYTHON": sys.executable,
          "UV_OVERRIDE": str(local_torch(work, links))}  # fmt: skip
    pipx = {"PIPX_HOME": str(own / "pipx"), "PIPX_BIN_DIR": str(own / "bin"), "PIPX_MAN_DIR": str(own / "man")}
    ways: list[tuple[str, list[str], dict[str, str], list[str]]] = [
        ("pipx install", [str(bin_ / "pipx"), "install", str(wheel)], pipx, [str(own / "bin" / "settle")]),
        ("uv tool install", [str(bin_ / "uv"), "tool", "install", str(wheel)], uv, [str(own / "uv" / "settle")]),
        ("uvx --from", [str(bin_ / "uvx"), "--from", str(wheel), "settle", "--version"], uv, []),
    ]
    for name, line, environ, settle in ways:
        code, said = run(line, **environ)
        yield name, said[-500:] if code else ""
        for command, fault in (
            tried_of(settle, {"SETTLE_HOME": str(work / f"home-{name[:2]}")}) if settle and not code else ()
        ):
            yield f"{name}: settle {command}", fault
    for name, line, environ in (
        ("pipx uninstall", [str(bin_ / "pipx"), "uninstall", "settle-lm"], pipx),
        ("uv tool uninstall", [str(bin_ / "uv"), "tool", "uninstall", "settle-lm"], uv),
    ):
        code, said = run(line, **environ)
        left = [path for place in (own / "pipx" / "venvs", own / "tools", own / "bin", own / "uv")
                for path in place.glob("settle*")]  # fmt: skip
        yield name, said[-500:] if code else f"leaves {left}" if name[:2] == "uv" and left else ""


def tried_of(settle: list[str], home: dict[str, str]) -> Iterator[tuple[str, str]]:
    for command in (*BASE, "pull smollm2"):
        yield command, done([*settle, *shlex.split(command)], home)


def local_torch(work: Path, links: str) -> Path:
    """Write uv's file of overrides: the newest torch of pip's folder of links for this Python, or nothing."""
    path = work / "override.txt"
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}-"
    wheels = [wheel for wheel in Path(links).glob("torch-*.whl") if tag in wheel.name] if links else []
    path.write_text("".join(f"torch=={wheel.name.split('-')[1]}\n" for wheel in wheels[-1:]), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
