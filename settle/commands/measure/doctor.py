"""settle doctor: what is wrong, proven by a re-run with one thing changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field

from settle.audit.reach import Reach
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.commands import Command
from settle.machine.threads import ThreadSettings


class Doctor(ThreadSettings, Command):
    """Find what is wrong with a run, a model, an answer or this machine.

    Without SUBJECT: this machine, the store, the last runs and the servers that run. Every check looks for seconds and
    changes nothing; what it finds is *likely*. `--prove` runs the same thing twice, with one setting changed, in the
    order A B B A: only then is a cause *proven*, or *ruled out*, and its fix is tested again on other prompts. The
    folder of a proof, given as SUBJECT, runs it again. The exit code is 3 when something is wrong, or a check had no
    time. `settle doctor MODEL --lesson all` shows on your own model why models break: eight lessons, each an A that
    works and a B that breaks, drawn by rule from a seed and measured by the probability of the answer.
    """

    positional: ClassVar[tuple[str, ...]] = ("subject",)
    writes_answer: ClassVar[bool] = True

    subject: str | None = Field(None, description="a run, a model, a .gguf file, a server, or the folder of a proof")
    from_: Path | None = Field(None, description="recorded requests and answers, or a conversation: why was it bad?")
    prove: str | None = Field(None, description="re-run one check by its number or name, or all that found something")
    fix: bool = Field(False, description="with --prove: write the fix of what is proven, and test it again")
    only: list[str] = Field(default_factory=list, description="look with these checks alone, by number or name")
    context: int | None = Field(None, gt=0, description="tokens of context that you run it with")
    memory: str | None = Field(None, description="memory that you run it in, such as 8GB; what is free if not given")
    cache: str = Field("f16", description="type of the KV cache that you run it with: f16, q8_0, q4_0 …")
    k: int = Field(4, gt=0, le=50, description="passages of a collection that you make an answer from")

    model: str | None = Field(
        None, description="model of the server that is looked at, or that answers from the collection"
    )
    key: str | None = Field(None, description="API key of the server that is looked at")
    lesson: str | None = Field(None, description="show why models break: a lesson by name or number, or all")
    draws: int = Field(12, ge=4, le=1000, description="with --lesson: how many times A and B are drawn")
    seed: int = Field(0, ge=0, description="with --lesson: same seed, same examples")

    def reaches(self) -> Sequence[Reach]:
        host = urlsplit(self.subject or "").hostname if (self.subject or "").startswith("http") else None
        return [Reach(host, "the server that is looked at")] if host else []

    def run(self, events: Events) -> int:
        if self.lesson is not None:
            from settle.doctor.measure_lesson import lessons

            if self.subject is None:
                raise UsageError("no model is named for the lessons", "`settle doctor MODEL --lesson all`")
            return lessons(self.subject, None if self.lesson == "all" else self.lesson, events, self.draws, self.seed)
        from settle.doctor.doctor import DoctorOptions, doctor

        how = self.context, self.threads, self.cache, self.from_, self.memory, self.model, self.key, self.k
        return doctor(DoctorOptions(self.subject, self.only, self.prove, self.fix, *how), events)
