"""A package that settle needs is missing, or older than the oldest that it works with."""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path
from typing import ClassVar

from settle.base.python_command import DISTRIBUTION
from settle.doctor.checks import Check
from settle.doctor.findings import Details, Finding, Fix
from settle.doctor.subject import ThisMachine

OLDEST = re.compile(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)$")  # a requirement with neither extra nor marker


class OldPackage(Details):
    """The package, and the oldest version that works."""

    name: str
    oldest: str


class Versions(Check[ThisMachine, OldPackage]):
    """Every package should be as new as settle says that it has to be."""

    number: ClassVar[int] = 29
    symptom: ClassVar[str] = "commands fail with errors of other packages"
    seconds: ClassVar[float] = 0.5

    def detect(self, subject: ThisMachine) -> Iterator[Finding[OldPackage]]:
        try:
            needed = [match for text in requires(DISTRIBUTION) or () if (match := OLDEST.match(text))]
        except PackageNotFoundError:
            return  # it runs from its sources, and nothing says what it needs
        found = _installed(subject.running.engine)
        for name, oldest in (match.groups() for match in needed):
            version = found.get(_plain(name))
            if version is None or _order(version) < _order(oldest):
                what = f"{name} {version} is installed" if version else f"{name} is not installed"
                seen = f"settle needs {oldest} or newer"
                yield self.finding(what, seen, strength=0.9, details=OldPackage(name=name, oldest=oldest))

    def fix(self, finding: Finding[OldPackage], subject: ThisMachine) -> Fix:
        name, oldest = finding.details.name, finding.details.oldest
        return Fix(f"install a newer {name}", f"pip install --upgrade '{name}>={oldest}'")


def _installed(first: Path | None) -> Mapping[str, str]:
    """Return the version of each package by its plain name; packages in the folder `first` come before others."""
    own = distributions(path=[str(first)]) if first is not None else ()
    found: dict[str, str] = {}
    for distribution in (*own, *distributions()):
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(_plain(name), distribution.version)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _order(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]
