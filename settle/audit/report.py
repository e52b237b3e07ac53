"""What `settle runs audit` shows of ledgers."""

import time
from pathlib import Path

from settle.audit.ledger import Connection, Ledger, read_ledger, read_sessions
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say
from settle.base.files import home
from settle.base.run import Run

COLUMNS = ("time", "process", "program", "call site", "host", "address", "port", "count", "declared")
MOST_LISTED = 40


def show_ledger(subject: str, events: Events) -> None:
    """Show the connections of a run, or of the newest command of that name. Raises UsageError without a ledger."""
    run = Run.named(subject)
    if run is not None:
        found = read_ledger(run.path, is_running=run.status == "running")
        if found is None:
            raise UsageError(f"{run.name} has no ledger", "it was made before settle kept one")
        title = run.name
    else:
        paths = [path for path in _ledgers() if _command(path) == subject]
        if not paths:
            raise UsageError(f"no run and no ledger is named {subject!r}", "`settle runs audit` lists the ledgers")
        found, title = read_sessions(paths[-1:]), paths[-1].stem
    events.emit(Listing(title=title, columns=COLUMNS, rows=[_row(c) for c in found.connections]))
    for note in _notes(found):
        events.emit(Say(text=note))
    events.emit(ResultReady(result={"audit": found.to_json()}))


def list_ledgers(events: Events) -> None:
    """List the newest ledgers, each with its sentence."""
    rows = []
    for path in reversed(_ledgers()[-MOST_LISTED:]):
        rows.append((_began(path), _command(path), read_sessions([path]).sentence))
    hint = "`settle runs audit RUN` shows every connection" if rows else "no command has left a ledger yet"
    events.emit(Listing(columns=("began", "command", "what left this machine"), rows=rows, note=hint))
    events.emit(ResultReady(result={"ledgers": [{"began": r[0], "command": r[1], "sentence": r[2]} for r in rows]}))


def _row(c: Connection) -> tuple[object, ...]:
    declared = "" if c.is_here else "yes" if c.declared else "NO"
    began = time.strftime("%H:%M:%S", time.localtime(c.time))
    program = Path(c.program).name
    port = "" if c.port is None else str(c.port)
    return began, str(c.pid), program, c.site, c.shown_host, c.address, port, c.count, declared


def _notes(found: Ledger) -> list[str]:
    notes = [f"declared: {reach.host} ({reach.why})" for reach in found.reaches]
    notes += [f"refused: {what}" for what in found.denied]
    return [*notes, found.sentence]


def _ledgers() -> list[Path]:
    return sorted((home() / "ledgers").glob("*.jsonl"))


def _began(path: Path) -> str:
    """2026-11-28T11-02-13-serve-4711-ab12.jsonl → 2026-11-28 11:02:13."""
    day, _, clock = path.stem[:19].partition("T")
    return f"{day} {clock.replace('-', ':')}"


def _command(path: Path) -> str:
    """2026-11-28T11-02-13-serve-4711-ab12.jsonl → serve."""
    return path.stem[20:].rsplit("-", 2)[0]
