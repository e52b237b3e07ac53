"""settle index: folders of documents, made ready to be asked, and kept up to date."""

from typing import ClassVar

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.python_command import extra_command
from settle.commands import Command
from settle.jobs.settings import IndexSettings


class Index(IndexSettings, Command):
    """Index folders of documents under a name, to ask them.

    Run it again, and only what has changed is read. PATHS are folders and files; the first may be the name of an
    existing collection, which is brought up to date and takes the others in. Without any, the collections are listed.
    Unreadable files are reported with the reason, and the rest is indexed. Stop it with Ctrl-C at any time: what was
    indexed is kept, and the same command continues.
    """

    positional: ClassVar[tuple[str, ...]] = ("paths",)
    begins_work: ClassVar[bool] = True
    essential: ClassVar[tuple[str, ...]] = ("name", "watch", "status", "check", "embedder", "anew", "without", "delete")

    def run(self, events: Events) -> int:
        try:
            from settle.jobs.index import index

            index(self, events)
        except ModuleNotFoundError as e:
            raise UsageError(f"indexing documents needs {e.name}", extra_command("rag")) from None
        return 0
