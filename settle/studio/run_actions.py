"""What can be done with a run that has ended: its buttons, and what each of them asks first."""

from pathlib import Path
from urllib.parse import quote

from nicegui import ui

from settle.base.event_log import Events
from settle.base.files import JsonObject
from settle.base.run import Run
from settle.base.words.amounts import amount
from settle.evaluate.report.run_page import run_page
from settle.formats import Format
from settle.jobs.rename import rename_run
from settle.library.deletion import folder_size, remove_runs
from settle.studio.command_child import CommandChild
from settle.studio.field import Field
from settle.studio.layout import Facts, Slot, button, card, confirmed, words
from settle.studio.table import Cell, Table
from settle.studio.visit import in_thread, reported

# formats, by what people take them for
FOR = {"ollama": "Ollama", "lmstudio": "LM Studio", "gguf": "llama.cpp: one file", "safetensors": "Hugging Face folder",
       "mlx": "MLX", "peft": "PEFT: the adapter alone", "lora_gguf": "llama.cpp: the adapter alone"}  # fmt: skip
NO_TALK = ("tune_decision", "tune_encoder")  # commands whose models write no answers


class RunActions:
    """The buttons. base: the model that the run began with; files: what it made, by kind. `place`: where they ask."""

    def __init__(self, run: Run, base: str, files: JsonObject) -> None:
        self.run, self.files, self.place = run, files, Slot()
        name, talks = quote(run.name, safe=""), run.command not in NO_TALK and {"gguf", "lora_gguf"} & {*files}
        with ui.element("div").classes("row") as row:
            if talks:
                ui.link("Chat", f"/chat?model={name}").classes("act main")
            if {"safetensors", "adapter"} & {*files}:
                button("Export", self._export)
            if talks and base:
                ui.link(f"Compare with {base}", f"/chat?model={name}&with={quote(base, safe='')}").classes("act")
            if talks:
                ui.link("Tune further", f"/new?command=tune&model={name}").classes("act")
                ui.link("Shrink", f"/new?command=shrink&model={name}").classes("act")
            button("Share", self._share)
            button("Rename", self._rename)
            button("Delete", self._delete, classes="danger")
        row.move(target_index=0)

    async def _export(self) -> None:
        held = ("model", "adapter") if "adapter" in self.files else ("model",)
        formats = [(name, title) for name, title in FOR.items() if Format.part(name).holds in held]

        async def write() -> None:
            options = [f"--to={form.text}", *out.as_option("--out"), *(["--force"] if force.value else [])]
            made = await child.read(["export", *options, "--", f"run:{self.run.name}"])
            path = Path(str(made["path"])).absolute()
            with done.anew():
                Facts([("written", str(path)), ("size", _size(path))])
                words("Next, in a terminal:")
                words(Format.make(form.text, {}).next_line(path, self.run.name), "pre")
                if path.is_file():
                    _download_button(path)

        with self.place.anew(), card("Export"):
            with ui.element("div").classes("columns"):
                form = Field("For", "choice", options=formats)
                out = Field("File or folder", hint=f"in {Path.cwd()}", help="LM Studio's is among its models.")
                force = Field("Replace what is there", "switch", value=False)
            button("Write it", write, main=True)
            child, done = CommandChild(), Slot()

    async def _share(self) -> None:
        page = await in_thread(run_page, self.run)
        ui.download.content(page, f"{self.run.name}.html", "text/html")

    async def _rename(self) -> None:
        async def rename() -> None:
            name = field.required("a run needs a name", "write one")
            await in_thread(rename_run, [self.run.path.name, name], Events())
            ui.navigate.to(f"/runs/{quote(name)}")

        with self.place.anew(), card("Rename"):
            field = Field("New name", value=self.run.name, help="The old name still leads to the run.")
            field.on("enter", reported(rename))
            button("Rename it", rename, main=True)

    async def _delete(self) -> None:
        async def delete() -> None:
            await in_thread(remove_runs, [self.run.path.name], True, Events())
            ui.navigate.to("/")

        question = f"Delete {self.run.name} with everything made: {_size(self.run.path)}?"
        with self.place.anew(), card("Delete"):
            confirmed(question, f"Delete {self.run.name} for good", delete, self.place.clear)


def show_files(files: JsonObject) -> None:
    """List what a run made; a button downloads each file."""
    paths = {path.name: path for path in (Path(str(value)) for value in files.values()) if path.exists()}

    async def act(name: str, _: str) -> None:
        ui.download.file(paths[name])

    table = Table("Files", ("name", "size", "in", ""), (1,), on_act=act)
    rows: list[list[Cell]] = [
        [name, _size(path), str(path.parent), {"text": "", "acts": ["Download"] if path.is_file() else []}]
        for name, path in paths.items()
    ]
    table.show(rows, [*paths])


def _download_button(path: Path) -> None:
    async def download() -> None:
        ui.download.file(path)

    button("Download", download)


def _size(path: Path) -> str:
    return amount(path.stat().st_size if path.is_file() else folder_size(path), "bytes")
