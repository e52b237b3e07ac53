"""settle shrink: a model made smaller or faster, to a budget, with what it loses measured."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, RunStarted, Say, Warn
from settle.base.run import Run, free_name, write_atomic, write_json
from settle.base.settings import recipe_text
from settle.commands import Command
from settle.commands._session import name_of
from settle.library.resolve import portable_name

if TYPE_CHECKING:
    from settle.model.pretrained import Pretrained
    from settle.shrink.search import Candidate, Shrinking
    from settle.shrink.session import Workbench

WORK = ".work-"  # prefix of the folder in a run's that holds what is being tried
ROOM = 2.5  # times the unquantized file: the candidates beside it, and what is measured


class Shrink(Command):
    """Make a model smaller or faster within a budget, and measure what it loses on your own text.

    MODEL is a run, a model of the store, a folder in Hugging Face's layout or a .gguf file. INPUTS are files of text or
    of examples that it is used for: most of them decide where bits are spent, the others judge the result. Without any,
    a text that settle brings is taken.

    One budget: --to 400MB, --to Q4_K_M, --speed 40 or --lose 1%. --plan shows what every route is expected to cost, and
    then what it does. --vocabulary removes the tokens that your text does not need, before a budget or without one.
    """

    positional: ClassVar[tuple[str, ...]] = ("model", "inputs")

    model: str = Field(description="a run, a model of the store, a folder in Hugging Face's layout, or a .gguf file")
    inputs: list[str] = Field([], description="files or folders of text or examples; settle's own text if not given")
    to: str | None = Field(
        None, description="a size such as 400MB, or one of llama.cpp's types: Q4_K_M, Q8_0, IQ4_XS …"
    )
    speed: float | None = Field(None, gt=0, description="tokens a second that it has to write on this machine")
    lose: str | None = Field(None, description="how much the loss on held-out text may rise, such as 1%")
    plan: bool = Field(False, description="predict every route, then measure it; nothing is handed over")
    vocabulary: bool = Field(False, description="keep only the tokens that INPUTS need; not one weight is rounded")
    name: str | None = Field(None, description="name of the run; from the model when not given")
    calibration: list[str] = Field([], description="other files to measure importance on")
    imatrix: Path | None = Field(None, description="an importance file of llama.cpp, instead of measuring one")
    requantize: bool = Field(False, description="take a model that is quantized already")
    compare: bool = Field(True, description="ask the model and the smaller one the held-out examples at the end")
    score: str | None = Field(
        None,
        description="metric: NAME, NAME:VALUE such as regex:PATTERN, or a Python file; from the data if not given",
        json_schema_extra={"parts": "evaluate/tasks"},
    )
    threads: int | None = Field(None, gt=0, description="processor threads; all cores when not given")

    def run(self, events: Events) -> int:
        self._budget()
        _require_extra()
        run = Run.create("shrink", self.name or free_name(f"{name_of(self.model)}-small"))
        events.emit(RunStarted(name=run.name, path=str(run.path)))
        with run.lock():
            write_atomic(run.path / "recipe.toml", recipe_text(self._asked()))
            return self.fill(run, events)

    def fill(self, run: Run, events: Events) -> int:
        """Do the work in a run's folder, which is held; also what `settle resume` calls after a kill."""
        budget, value = self._budget()
        try:
            with tempfile.TemporaryDirectory(dir=run.path, prefix=WORK) as folder:
                bench = self._workbench(Path(folder), budget, events)
                events.move_to(run.events)
                if budget == "plan":
                    result = _planned(bench, run, events)
                else:
                    result = self._handed_over(bench, run, budget, value, events)
            write_json(run.path / "result.json", result)
        except KeyboardInterrupt:
            events.emit(Say(text="stopped; what was measured is kept, and the same command goes on from there"))
            raise
        finally:
            if not (run.path / "result.json").exists():
                shutil.rmtree(run.path, ignore_errors=True)  # what took long is in the store
        events.emit(ResultReady(result=result))
        return 0

    def _asked(self) -> dict[str, Any]:
        """What recipe.toml keeps, with paths that hold from any folder."""

        def absolute(given: str) -> str:
            path = Path(given).expanduser().absolute()
            return str(path) if path.exists() else given

        kept = self.model_dump(exclude_unset=True, mode="json")
        for key, value in kept.items():
            if key in ("model", "imatrix"):
                kept[key] = portable_name(value)
            elif key in ("inputs", "calibration"):
                kept[key] = [absolute(path) for path in value]
        return kept

    def _budget(self) -> tuple[str, Any]:
        """Which of the budgets was asked for, and its value. Raises UsageError unless it is one."""
        from settle.base.amounts import num_bytes, share
        from settle.shrink.types.mixes import MIXES

        given = [n for n in ("to", "speed", "lose", "plan") if getattr(self, n)]
        if self.vocabulary and not self.inputs:
            raise UsageError("which tokens are needed, your text decides", "give it: `settle shrink MODEL FILES …`")
        if not given and self.vocabulary:
            return "keep", None
        if len(given) != 1:
            asked = ", ".join(f"--{n}" for n in given) or "none"
            fix = "--to 400MB, --to Q4_K_M, --speed 40, --lose 1% or --plan"
            raise UsageError(f"one budget decides, and {asked} were given", fix)
        if self.to is not None and self.to.upper() in MIXES:
            return "type", self.to.upper()
        if self.to is not None and self.to[:1].isalpha():
            raise UsageError(f"there is no type {self.to!r}", f"a size such as 400MB, or one of: {', '.join(MIXES)}")
        if self.to is not None:
            return "size", num_bytes(self.to)
        if self.lose is not None:
            return "lose", share(self.lose)
        return given[0], self.speed

    def _workbench(self, folder: Path, budget: str, events: Events) -> "Workbench":
        from settle.machine import cores
        from settle.shrink.calibration_data import material
        from settle.shrink.session import Workbench

        events.emit(Say(text=f"reading {self.model} …"))
        source = _unquantized(self.model, folder, self.requantize or budget == "keep", events)
        _require_room(source.source.path, folder)
        part: Any = source.part
        known = _known_texts(self.model, source, events) if not self.inputs else []
        text = material(self.inputs, self.calibration, source.tokenizer, part.max_position_embeddings, events, known)
        for warning in text.warnings:
            events.emit(Warn(text=warning))
        bench = Workbench(source, text, folder, events, self.threads or cores().usable, self.imatrix)
        return bench.with_vocabulary() if self.vocabulary else bench

    def _handed_over(self, bench: "Workbench", run: Run, budget: str, value: Any, events: Events) -> dict[str, Any]:
        from settle.library.run_models import record_made
        from settle.shrink.search import Shrinking

        shrinking = Shrinking(bench)
        if budget == "keep":
            chosen = shrinking.measured(shrinking.as_it_is())
        elif budget == "type":
            _tell_fallen(bench, value, events)
            chosen = shrinking.measured(shrinking.of_mix(value))
        else:
            search = {"size": shrinking.within_size, "lose": shrinking.within_loss, "speed": shrinking.at_speed}
            chosen = search[budget](value)
        label = chosen.recipe or f"auto-{chosen.num_bytes / 1e6:.3g}MB" if chosen.kinds else "vocabulary"
        path = run.out / f"{run.name}-{label}.gguf"
        gate = bench.hand_over(chosen.kinds, path, chosen.recipe)
        record_made(run, {"gguf": str(path)})
        return _told(shrinking, chosen, path, gate, run, self._compared(bench, path, events), events)

    def _compared(self, bench: "Workbench", path: Path, events: Events) -> dict[str, Any] | None:
        """The model and the smaller one on the person's held-out examples."""
        if not (self.compare and bench.material.examples):
            return None
        from settle.evaluate.compare.candidate_pair import contenders, readers
        from settle.evaluate.compare.compare import compare, tell
        from settle.library.reference import ModelRef
        from settle.model.source import Source

        whole = ModelRef(bench.whole.name, "model", bench.whole.source)
        small = ModelRef(path.stem, "model", Source(path, "gguf", path.stem))
        with contenders(whole, small) as (ours, theirs):
            found = compare(
                ours, theirs, bench.material.examples, events,
                score=self.score, only_rows=True, readers=readers(whole, small),
            )  # fmt: skip
        tell(found, events)
        return found.to_json()


def _require_extra() -> None:
    import importlib.util

    if importlib.util.find_spec("llama_cpp_py_sync") is None:
        raise UsageError("shrinking needs llama-cpp-py-sync", "pip install 'settle-lm[shrink]'")


def _known_texts(name: str, source: "Pretrained", events: Events) -> list[str]:
    """Of a run: what it was not trained on, of the kind that it was made for."""
    from settle.evaluate.gate.held_out import held_out_text
    from settle.library.resolve import find_run

    run = find_run(name)
    return held_out_text(run, source.tokenizer, events, 60_000) if run else []


def _unquantized(name: str, folder: Path, requantize: bool, events: Events) -> "Pretrained":
    """The model as a GGUF file that is not quantized; one in Hugging Face's layout is written as one first."""
    from settle.formats.gguf import read_gguf
    from settle.library.convert import to_gguf, unquantized_type
    from settle.library.pretrained import open_pretrained
    from settle.shrink.types.quantize_file import quantized_already

    opened = open_pretrained(name)
    if opened.source.kind != "gguf":
        dtype = unquantized_type(opened)
        path = folder / f"{opened.name}-{dtype}.gguf"
        events.emit(Say(text=f"writing {opened.name} as GGUF, in {dtype}, to start from …"))
        to_gguf(opened, path, dtype)
        opened = open_pretrained(path)
    quantized = quantized_already(read_gguf(opened.source.path))
    if quantized and not requantize:
        kinds = ", ".join(f"{number} tensors {kind}" for kind, number in quantized.items())
        raise UsageError(
            f"{opened.name} is quantized already ({kinds}): what was rounded away is lost, and rounding again adds to "
            "it",
            "start from the model in F16 or BF16; --requantize insists, and measures against the file as it is",
        )
    return opened


def _require_room(path: Path, folder: Path) -> None:
    from settle.base.errors import ResourceError

    needed, free = ROOM * path.stat().st_size, shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"no room to work in: {needed / 1e6:,.0f} MB are needed in {folder.parent}, {free / 1e6:,.0f} MB are free",
            "make room there, or set SETTLE_HOME to a folder that has it",
        )


def _tell_fallen(bench: "Workbench", recipe: str, events: Events) -> None:
    """Which tensors get a larger type than the recipe's, known before anything is written."""
    from settle.shrink.types.type_fallback import fallen

    found = fallen(bench.file, recipe, has_importance=True)
    if found is not None:
        events.emit(Warn(text=f"{found.told()}; --to {found.num_bytes / 1e6:.1f}MB spends as many bytes better"))


def _planned(bench: "Workbench", run: Run, events: Events) -> dict[str, Any]:
    """Every route as predicted, then as measured."""
    from settle.evaluate.footprint import footprint
    from settle.shrink.pareto import COLUMNS, draw_pareto, pareto_rows
    from settle.shrink.search import Shrinking, predicted_speeds, reference
    from settle.shrink.throughput_model import Pace

    shrinking = Shrinking(bench)
    routes = shrinking.routes()
    whole = reference(bench, footprint(bench.path, threads=bench.threads))
    assert whole.footprint is not None
    pace = Pace.of([(shrinking.read(whole), whole.footprint.speed.median)])
    speeds = predicted_speeds(shrinking, routes, pace)
    expected = [whole.point(), *(c.point(speeds[c.name]) for c in routes)]
    events.emit(Listing(title="expected", columns=COLUMNS, rows=pareto_rows(expected)))
    measured = [shrinking.timed(shrinking.measured(c)) for c in routes]
    points = [whole.point(), *(c.point() for c in measured)]
    events.emit(Listing(title="measured", columns=COLUMNS, rows=pareto_rows(points)))
    draw_pareto(points, run.out / "pareto.png", f"{bench.source.name}: size, speed and loss")
    candidates = [c.to_json() | {"expected_speed": speeds.get(c.name)} for c in [whole, *measured]]
    files = {"picture": str(run.out / "pareto.png")}
    return {
        "name": run.name,
        "verdict": "planned",
        "why": f"{len(routes)} routes",
        "files": files,
        "candidates": candidates,
    }


def _told(
    shrinking: "Shrinking", chosen: "Candidate", path: Path, gate: dict[str, Any], run: Run,
    comparison: dict[str, Any] | None, events: Events,
) -> dict[str, Any]:  # fmt: skip
    """Table, picture, card; what result.json holds."""
    import dataclasses

    from settle.evaluate.footprint import footprints
    from settle.evaluate.gate.export import emit_gate_checks
    from settle.shrink.card import write_card
    from settle.shrink.pareto import COLUMNS, draw_pareto, pareto_rows
    from settle.shrink.search import reference

    bench = shrinking.bench
    emit_gate_checks(gate, events)
    before, after = footprints([bench.whole.source.path, path], threads=bench.threads)
    whole, chosen = reference(bench, before), dataclasses.replace(chosen, footprint=after)
    others = [c for c in shrinking.seen.values() if c.name != chosen.name]
    points = [whole.point(), chosen.point(chosen=True), *(c.point() for c in others if c.divergence)]
    events.emit(Listing(title="", columns=COLUMNS, rows=pareto_rows(points)))
    draw_pareto(points, run.out / "pareto.png", f"{bench.source.name}: size, speed and loss")
    assert chosen.divergence is not None
    on_text = bench.text_loss(path)
    rise = (on_text or chosen.divergence).rise.value
    faster = after.speed.median / before.speed.median
    why = (
        f"{path.stat().st_size / whole.num_bytes:.0%} of the size, {faster:.2f} times as fast, and the loss on "
        f"{bench.material.name} changes by {rise:+.2%}"
    )
    result: dict[str, Any] = {
        "name": run.name,
        "verdict": "within budget",
        "why": why,
        "base": {"name": bench.whole.name, "sha256": bench.whole.source.sha256},
        "chosen": chosen.to_json(),
        "reference": whole.to_json(),
        "candidates": [c.to_json() for c in others],
        "kinds": dict(chosen.kinds),
        "forecast": {"kl": chosen.predicted},
        "gate": gate,
        "files": {"gguf": str(path), "card": str(run.out / "card.md"), "picture": str(run.out / "pareto.png")},
    }
    if on_text:
        result["vocabulary"] = {**bench.cut, "text": on_text.to_json()}
    if comparison:
        result["comparison"] = comparison
    write_card(run.out / "card.md", result, bench)
    events.emit(Say(text=why))
    return result
