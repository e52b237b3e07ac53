"""The folder that a proof leaves: what was found, every measurement, what it came to, and how to run it again."""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from settle.base.errors import RunError, cannot_write
from settle.base.files import home, read_json, write_json
from settle.base.run import WorkFolder
from settle.base.version import __version__
from settle.doctor.checks import Check
from settle.doctor.findings import Finding
from settle.doctor.subject import RecordedChat, Running, Subject
from settle.experiment.two_arms import Proof
from settle.wire.types import JsonObject

FILE, MEASUREMENTS = "proof.json", "measurements.jsonl"


@dataclass(frozen=True)
class Case:
    """The finding that a proof folder is about."""

    subject: str | None
    finding: Finding[Any]
    running: Running
    transcript: Path | None  # the file beside the subject, or None
    served: str | None  # the model of a server, or None


def folder_for(subject: Subject, finding: Finding[Any]) -> Path:
    """Return the folder of a proof: one for each finding of a subject, so that a proof is resumed."""
    named = [subject.name, subject.named, subject.served, _running(subject.running)]
    about = json.dumps([*named, finding.check, finding.details.to_json()], default=str, sort_keys=True)
    name = re.sub(r"[^a-zA-Z0-9._-]+", "-", Path(subject.name).name).strip("-.") or "it"
    return home() / "doctor" / f"{name[:40]}-{finding.check}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Path]:
    """Hold the folder for this process alone.

    Raises RunError when another doctor works in it, ResourceError when it cannot be written.
    """
    with WorkFolder(folder, folder.name, "proving this").lock():
        yield folder


def remove_copies(folder: Path) -> None:
    """Remove what a proof makes again in seconds, and is as large as a model."""
    for copy in folder.glob("*.gguf"):
        copy.unlink()
    for record in folder.glob("*.record"):
        shutil.rmtree(record)


def write_case(folder: Path, subject: Subject, finding: Finding[Any], knob: str, proof: Proof | None) -> None:
    """Write what a proof is about and its result. Raises ResourceError when the disk is full."""
    try:
        write_json(
            folder / FILE,
            {
                "settle": __version__,
                "subject": subject.named,
                "transcript": str(Path(subject.name).resolve()) if isinstance(subject, RecordedChat) else None,
                "served": subject.served,
                "running": _running(subject.running),
                "finding": finding.to_json(),
                "changed": knob,
                "again": f"settle doctor {folder}",
                "proof": proof and proof.to_json(),
            },
        )
    except OSError as e:
        raise cannot_write(folder, e) from None


def _running(running: Running) -> JsonObject:
    """Return it as JSON holds it."""
    engine = str(running.engine.resolve()) if running.engine else None
    return vars(running) | {"sampling": dict(running.sampling), "engine": engine}


def is_proof_folder(path: Path) -> bool:
    return (path / FILE).is_file()


def read_case(folder: Path) -> Case:
    """Read what a proof folder is about. Raises RunError for a folder that is damaged."""
    record = read_json(folder / FILE)
    try:
        found = record["finding"]
        kind: Any = Check.part(found["check"]).details
        details = TypeAdapter(kind).validate_python(found["details"])
        evidence = tuple(found["evidence"])
        finding = Finding[Any](found["check"], found["what"], evidence, found["strength"], details)
        transcript = record.get("transcript")
        engine = record["running"]["engine"]
        running = Running(**{**record["running"], "engine": Path(engine) if engine else None})
        return Case(record["subject"], finding, running, Path(transcript) if transcript else None, record.get("served"))
    except (KeyError, TypeError, ValueError) as e:
        raise RunError(f"{folder / FILE} is damaged: {e}", "run the proof anew from its finding") from None
