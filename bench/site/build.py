"""The site of the documentation, which `make docs` builds: build/site/index.html opens in a browser from the file.

    python bench/site/build.py

1. The README, docs/ and every file that they link to are copied to build/pages, in the same places, so that links hold.
   The Python API (from its docstrings) and the commands (from their parser) become pages, too.
2. mkdocs builds them into build/site. The navigation is the list in docs/README.md: a heading is a group.
3. The built site is checked: every link and anchor inside it leads somewhere, and nothing is loaded from elsewhere.
"""

import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import settle
from settle import api
from settle.retrieve.answer.ask import AskableCollection

ROOT = Path(__file__).parents[2]
PAGES, SITE = ROOT / "build/pages", ROOT / "build/site"
MANUAL = runpy.run_path(str(ROOT / "bench/manual.py"))
ALL_PAGES = "docs/all.md"  # what docs/README.md is here: mkdocs takes docs/index.md for the folder's first page
FENCE = re.compile(r"(^```.*?^```)", re.M | re.S)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)[^)]*\)")
LIST_AFTER_TEXT = re.compile(r"^(?!- |\d+\. |\s|#|\|)(.+)\n(?=- |1\. )", re.M)
URL = re.compile(r"""https?://[^\s"'`)<>]+""")
DIALOG = '<div class="md-search" data-md-component="search" role="dialog"'  # the theme gives it no name
QUALIFIED = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Z])")
WIDTH = 88  # characters of a signature on one line
LOADED = {"src", "srcset", "poster", "data", "data-src"}  # attributes whose address a browser loads
# In scripts of the theme: namespaces, licences, and an API that is asked only for a repository, which we name none.
NEVER_LOADED = {
    "www.w3.org", "fontawesome.com", "clipboardjs.com", "bit.ly", "tartarus.org", "lunrjs.com", "github.com",
    "squidfunk.github.io", "api.github.com", "${e}",
}  # fmt: skip
FROM_ELSEWHERE = re.compile(r"https://unpkg\.com/")  # the theme's, for old browsers and drawings


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    groups = navigation((ROOT / "docs/README.md").read_text(encoding="utf-8"))
    for path in linked(ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        target = PAGES / (ALL_PAGES if path == ROOT / "docs/README.md" else path.relative_to(ROOT))
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(rendered_elsewhere(path.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copyfile(path, target)
    commands = [*MANUAL["pages"]()]
    for command in commands:
        write(f"commands/{command.name}.md", command_page(command))
    write("api.md", api_page({command.name for command in commands}))
    for asset in ("iframe-worker.js", "site.css"):
        write(f"assets/{asset}", (ROOT / "bench/site" / asset).read_text(encoding="utf-8"))
    groups["Start here"] += [("All pages", ALL_PAGES)]
    groups["Reference"] += [("Python", "api.md")]
    tree = [{group: [{title: page} for title, page in pages]} for group, pages in groups.items()]
    tree[-1]["Reference"] += [{"Commands": [{c.name: f"commands/{c.name}.md"} for c in commands]}]
    text = (ROOT / "bench/site/mkdocs.yml").read_text(encoding="utf-8")
    config = ROOT / "build/mkdocs.yml"
    config.write_text(f"{text}docs_dir: pages\nsite_dir: site\nnav: {tree!r}\n", encoding="utf-8")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(config)]
    if subprocess.run(line, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode:
        sys.exit("mkdocs built no site")
    shutil.rmtree(SITE / "assets/javascripts/lunr")  # searches in other languages than the pages
    for script in SITE.glob("assets/**/*.js"):
        script.write_text(FROM_ELSEWHERE.sub("unavailable/", script.read_text(encoding="utf-8")), encoding="utf-8")
    for page in SITE.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(DIALOG, f'{DIALOG} aria-label="Search"'), encoding="utf-8")
    if wrong := [*faults(SITE)]:
        sys.exit("\n".join(wrong))
    print(f"{SITE.relative_to(ROOT)}/index.html")


def navigation(text: str) -> dict[str, list[tuple[str, str]]]:
    """Map each heading of docs/README.md to its pages: title and path from the root."""
    groups = {}
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        found = re.findall(r"^- \[([^\]]+)\]\(([^)]+)\)", body, re.M)
        groups[heading] = [(title, (Path("docs") / path).as_posix()) for title, path in found]
        groups[heading] = [(title, re.sub(r"^docs/\.\./", "", path)) for title, path in groups[heading]]
    return groups


def linked(*pages: Path) -> set[Path]:
    """Return these pages, and all files of the repository that they or the pages they link to link to."""
    found, waiting = set(pages), [*pages]
    while waiting:
        page = waiting.pop()
        if page.suffix != ".md":
            continue
        for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            path = (page.parent / unquote(target)).resolve()
            if path.is_file() and path.is_relative_to(ROOT) and path not in found:
                found.add(path)
                waiting.append(path)
    return found


def rendered_elsewhere(text: str) -> str:
    """Return a page of GitHub's Markdown for mkdocs: an empty line before a list, and the list of pages where it is."""
    parts = FENCE.split(text)
    parts[::2] = [LIST_AFTER_TEXT.sub(r"\1\n\n", part) for part in parts[::2]]
    return "".join(parts).replace("](docs/README.md", f"]({ALL_PAGES}")


def write(name: str, text: str) -> None:
    (PAGES / name).parent.mkdir(parents=True, exist_ok=True)
    (PAGES / name).write_text(text, encoding="utf-8")


def command_page(page: object) -> str:
    """Return the Markdown of a command, from the manual."""
    lines = [f"# settle {page.name}", page.summary, f"```\n{page.usage}\n```", *page.paragraphs]
    for title, options in page.groups:
        rows = [f"## {'Options' if title == 'Parameters' else title}\n", "| | |", "|---|---|"]
        for option in options:
            names = ", ".join(f"`{name}`" for name in option.names)
            rows.append(f"| {names} {option.value} | {option.text.replace('|', chr(92) + '|')} |")
        lines.append("\n".join(rows))
    return "\n\n".join(lines) + "\n"


def api_page(commands: set[str]) -> str:
    """Return the Markdown of the public Python names: their signatures and docstrings."""
    classes = [api.FinishedRun, api.Conversation, api.Report, api.ServerProcess, AskableCollection, settle.SettleError]
    parts = ["# Python", str(inspect.getdoc(api))]
    for name in settle.__all__:
        value = getattr(settle, name)
        if inspect.isfunction(value):
            parts += [f"## settle.{name}", *described(name, value)]
            if name in commands:
                parts.append(f"Settings: the options of [settle {name}](commands/{name}.md).")
    for kind in classes:
        parts += [f"## {kind.__name__}", str(inspect.getdoc(kind))]
        for name, member in vars(kind).items():
            if not name.startswith("_") and inspect.getdoc(member):
                parts += [f"### {kind.__name__}.{name}", *described(name, member)]
    return "\n\n".join(parts) + "\n"


def described(name: str, value: object) -> Iterator[str]:
    """Yield a function's signature, with names as one writes them, unless it is a property, and its docstring."""
    function = getattr(value, "__func__", value)
    if inspect.isfunction(function):
        text = QUALIFIED.sub("", f"{name}{inspect.signature(function)}").replace("'", "")
        if len(text) > WIDTH:
            head, _, rest = text.partition("(")
            inside, _, tail = rest.rpartition(")")
            text = "\n    ".join([f"{head}(", *(f"{one}," for one in inside.split(", "))]) + f"\n){tail}"
        yield f"```python\n{text}\n```"
    yield str(inspect.getdoc(value))


class Links(HTMLParser):
    """What a page loads, where its links lead, and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors = {"", "__skip"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.loaded += [value for name, value in values.items() if name in LOADED and tag not in ("a", "button")]
        self.loaded += URL.findall(values.get("style", ""))
        if "href" in values:
            (self.loaded if tag in ("link", "image", "use") else self.links).append(values["href"])


def faults(site: Path) -> Iterator[str]:
    """Yield what a browser would load from elsewhere, and links inside the site that lead nowhere."""
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        where = path.relative_to(site)
        yield from (f"{where} loads {address}" for address in page.loaded if urlsplit(address).netloc)
        for address in (*page.loaded, *page.links):
            url = urlsplit(address)
            if url.scheme or url.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{where} links to {address}, which is not there"
            elif target in pages and unquote(url.fragment) not in pages[target].anchors:
                yield f"{where} links to {address}, which has no such anchor"
    for path in (found for found in site.rglob("*.*") if found.suffix in (".css", ".js", ".svg")):
        text = "" if path.parent.name == "search" else path.read_text(encoding="utf-8")  # the index is text of pages
        for address in URL.findall(text):
            if urlsplit(address).netloc not in NEVER_LOADED:
                yield f"{path.relative_to(site)} names {address}"


if __name__ == "__main__":
    main()
