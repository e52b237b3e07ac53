"""One file is one command: its docstring is the help, its fields are the arguments, `run` does it."""

from collections.abc import Sequence
from typing import ClassVar

from settle.audit.reach import Reach
from settle.base.event_log import Events
from settle.base.registry import Part

GROUPS = ("make", "use", "plan", "manage", "measure")  # sub-folders that hold the commands


class Command(Part):
    """The contract of a command. It prints nothing: it emits events, and the face renders them.

    Field annotations become the command line: `positional` fields in order, every other one an option.
    writes_answer: whether text that others wrote goes to stdout, which `--raw` leaves as it is.
    """

    positional: ClassVar[tuple[str, ...]] = ()
    writes_answer: ClassVar[bool] = False
    # options that `--help` shows, the others with `--help-all`; (): all of them
    essential: ClassVar[tuple[str, ...]] = ()
    begins_work: ClassVar[bool] = False  # something is made that takes a while: the studio has a form for it
    is_watched: ClassVar[bool] = True  # whether it leaves a ledger of its connections; not where it only reads or lists

    @classmethod
    def usage(cls) -> str:
        """Return how the command is typed: `settle tune [OPTIONS] [MODEL] [INPUTS]...`."""
        fields = {name.replace("_", "-").strip("-").upper(): cls.model_fields[name] for name in cls.positional}
        places = [name if field.is_required() else f"[{name}]" for name, field in fields.items()]
        many = "..." if any("list" in str(field.annotation) for field in fields.values()) else ""  # the last one
        return " ".join(["settle", cls.part_name().strip("_").replace("_", "-"), "[OPTIONS]", *places]) + many

    def reaches(self) -> Sequence[Reach]:
        """Return the hosts beyond this machine that it may connect to."""
        return ()

    def door(self) -> tuple[str, int] | None:
        """Host and port that programs of this machine reach it at, also without a network; None for most."""
        return None

    def run(self, events: Events) -> int:
        """Do the work; the exit code: 0 done, 1 error, 2 usage, 3 no answer or not better, 130 interrupted."""
        raise NotImplementedError
