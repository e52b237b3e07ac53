"""The plan of a tuning run: the adapter, the base's weights and the batch sizes, chosen so that it fits in memory."""

import math

from settle.base.amounts import count
from settle.base.choice import Choice
from settle.base.errors import ResourceError, UsageError
from settle.base.words.amounts import gigabytes
from settle.data.rows.prepare import RowCorpus
from settle.formats.gguf.types import GGML
from settle.machine import Accelerator, accelerator, memory, use_torch_threads
from settle.model.adapters import Adapter
from settle.model.layers.attention import keeps_no_probabilities
from settle.model.pretrained import Pretrained
from settle.plan.memory import WEIGHT, precision
from settle.plan.memory_model import kept_activations
from settle.plan.settings import TuningSettings
from settle.plan.size import requested_seconds
from settle.plan.training_plan import choose_dtype, origins, require_dtype, require_sharding, shapes, sharding
from settle.train.objectives import ROW_NAMES, Objective
from settle.train.optimizers import Optimizer
from settle.train.settled import EVALUATION_COST, MIN_HISTORY, sample_size
from settle.train.state import LoopPlan
from settle.train.training_plan import TrainingPlan, Tuning

FULL = "full"
MOST_PASSES = 20.0  # over the rows of a run without a budget
MOST_AT_ONCE = 8192  # tokens of a micro-batch, at most
SMALL_SAMPLE = 16384  # held-out tokens of an evaluation when rows are few
FIRST_VERDICT = 5 / 3  # epochs before the earliest verdict, when rows are few
ROOM = 0.9  # share of the free memory that a plan may fill
ADAMW_STATE = 8.0  # bytes of a trained weight
NF4 = 0.52  # bytes of a weight
# Learning rates for tuning, which makes small changes to weights that are good already.
RATES: dict[str, dict[str, float]] = {
    "adapter": {"beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0},
    "full": {"lr": 3e-5, "table_lr": 2e-5, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0},
}


def plan_tuning(settings: TuningSettings, origin: dict[str, str], corpus: RowCorpus, base: Pretrained) -> TrainingPlan:
    """Plan every number of the run. `origin`: the source of each setting.

    Raises UsageError for what does not go together, ResourceError for what does not fit, proposing what would.
    """
    device = accelerator(settings.device)
    require_dtype(settings.dtype, device)
    threads = use_torch_threads(settings.threads)
    why: dict[str, str] = {}
    adapter_name = str(settings.adapter.name)
    _check_quantize(settings.quantize, adapter_name, base)
    objective_name, objective = _objective(settings.objective, corpus, adapter_name, base, why)
    adapter = None if adapter_name == FULL else _adapter(settings.adapter, objective, why)
    require_sharding(settings, type(objective), base.part, device.kind, is_whole=adapter is None)
    kind = FULL if adapter_name == FULL else "adapter"
    rule = str(settings.optimizer.name)
    rates = RATES[kind] | ({"lr": _adapter_rate(adapter, objective, base, why)} if adapter else {})
    optimizer = Optimizer.make(rule, settings.optimizer.over(rates if rule == "adamw" else {}).settings)
    per_row = corpus.train.num_inputs / corpus.train.num_rows
    micro = max(1, min(MOST_AT_ONCE, round(per_row * settings.batch_rows)))
    dtype = choose_dtype(settings.dtype, device, shapes(base.part, micro), why)
    rows, recompute = _Fit(settings, corpus, base, device, dtype, adapter, objective).choose(why)
    held_out = _sample(corpus, base.part.num_parameters, why)
    loop = _loop(settings, corpus, objective.passes, rows, threads, why).model_copy(
        update={"evaluation_cost": _evaluation_cost(corpus, held_out), "seconds": requested_seconds(settings, device)}
    )
    adapter_settings = adapter.model_dump(mode="json") if adapter else {}
    groups = {"optimizer": optimizer.model_dump(), "adapter": adapter_settings, "objective": objective.model_dump()}
    return TrainingPlan(
        architecture=base.part.model_dump(mode="json"),
        architecture_name=type(base.part).__module__.rpartition(".")[2],
        objective=objective_name,
        objective_settings=objective.model_dump(),
        optimizer_name=rule,
        optimizer=optimizer.model_dump(),
        loop=loop,
        device=device.kind,
        dtype=dtype,
        held_out_tokens=held_out,
        origin=origins(origin, settings, why, groups),
        why=why,
        tuning=Tuning(
            base=str(base.source.path.resolve()),
            base_name=base.name,
            base_sha256=base.source.sha256,
            adapter_name=adapter_name,
            adapter=adapter_settings,
            quantize=settings.quantize,
            rows=rows,
            recompute=recompute,
        ),
    )


def _check_quantize(quantize: str | None, adapter_name: str, base: Pretrained) -> None:
    if quantize and adapter_name == FULL:
        raise UsageError("weights that are trained cannot be quantized", "--adapter lora, or leave --quantize out")
    if quantize == "as-is" and not any(GGML[kind].quantized for kind in base.kinds):
        kinds = ", ".join(base.kinds)
        raise UsageError(f"{base.name} has no quantized weights: they are {kinds}", "--quantize nf4 makes some")


def _objective(
    requested: Choice, corpus: RowCorpus, adapter_name: str, base: Pretrained, why: dict[str, str]
) -> tuple[str, Objective]:
    """Return the requested objective with its settings, by default the one for this kind of rows."""
    suited = {name: part for name, part in Objective.parts().items() if part.suits(corpus.kind)}
    suited = dict(sorted(suited.items(), key=lambda item: not item[1].is_default))
    default = next(iter(suited))
    choice = requested.named(default)
    name, what = str(choice.name), ROW_NAMES[suited[default].rows]
    if name not in suited:
        raise UsageError(f"--objective {name} does not learn from {what}", f"for these rows: {', '.join(suited)}")
    if suited[name].compares_with_base and adapter_name == FULL:
        raise UsageError(f"{name} compares with the base, which is gone when every weight is trained", "--adapter lora")
    if requested.name is None:
        why["objective.name"] = f"the rows are {what}"
    return name, Objective.make(name, choice.settings).resolved(base)


def _loop(
    settings: TuningSettings, corpus: RowCorpus, passes: float, rows: int, threads: int, why: dict[str, str]
) -> LoopPlan:
    store = corpus.train
    tokens = max(1, round(store.num_inputs * settings.batch_rows / store.num_rows))
    per_epoch = store.num_rows / settings.batch_rows
    limits = [
        settings.steps,
        max(1, count(settings.tokens) // tokens) if settings.tokens else None,
        max(1, round(settings.epochs * per_epoch)) if settings.epochs else None,
    ]
    max_steps = min((limit for limit in limits if limit), default=None)
    if max_steps and max_steps != settings.steps:
        option = f"--epochs {settings.epochs:g}" if max_steps == limits[2] else f"--tokens {settings.tokens}"
        why["steps"] = f"{option}: {per_epoch:,.1f} steps are an epoch, {tokens:,} tokens a step"
    usual = max(1, math.ceil(passes * per_epoch))
    expected = max_steps or usual
    warmup = max(2, min(100, usual // 25, expected // 10))
    why["warmup_steps"] = f"4 % of {passes:g} passes over the rows, at most 10 % of the budget, 2 to 100"
    why["batch_tokens"] = f"{settings.batch_rows} rows of {tokens / settings.batch_rows:,.0f} tokens on average"
    return LoopPlan(
        tokens_per_step=tokens,
        micro_batches=settings.batch_rows // rows,
        sequence_length=int(store.lengths.max()) - 1,
        warmup_steps=warmup,
        max_steps=max_steps,
        most_passes=None if max_steps or settings.time else MOST_PASSES,
        decay_fraction=0.4 if expected < 2000 else 0.25,
        tolerance=settings.tolerance,
        checkpoint_steps=max(10, math.ceil(expected / 50)),
        **sharding(settings),
        seed=settings.seed,
        threads=threads,
    )


def _adapter(asked: Choice, objective: Objective, why: dict[str, str]) -> Adapter:
    """Make the adapter; its default targets are those that suit the objective."""
    part = Adapter.part(str(asked.name))
    if "targets" in part.model_fields and "targets" not in asked.settings and objective.adapts != "all-linear":
        why["adapter.targets"] = "few rows are learned best by the last layers"
        asked = asked.over({"targets": objective.adapts})
    return part.model_validate(asked.settings)


def _adapter_rate(adapter: Adapter, objective: Objective, base: Pretrained, why: dict[str, str]) -> float:
    """Return the learning rate of an adapter over this base, where nobody gives one."""
    width = base.part.options().layers[0].width
    rate = objective.rate(adapter, width)
    if rate != adapter.LEARNING_RATE:
        why["optimizer.lr"] = f"{adapter.LEARNING_RATE:g} at usual widths, more at {width}"
    return rate


def _sample(corpus: RowCorpus, parameters: int, why: dict[str, str]) -> int:
    """Return the selection tokens of an evaluation: a larger share when rows are few, a noisy sample otherwise."""
    train, selection = corpus.train.num_inputs, corpus.selection.num_inputs
    wanted = max(sample_size(train, parameters), min(train // 40, SMALL_SAMPLE))
    sample = min(selection, wanted)
    why["held_out_tokens"] = f"{sample:,} of {selection:,}: enough to see a difference, few enough to evaluate often"
    return sample


def _evaluation_cost(corpus: RowCorpus, sample: int) -> float:
    """Return the share of the time that evaluations may take early on.

    It makes a verdict possible before few rows are memorized: `MIN_HISTORY` evaluations in `FIRST_VERDICT` epochs.
    """
    spacing = FIRST_VERDICT * corpus.train.num_inputs / MIN_HISTORY
    return max(EVALUATION_COST, min(0.2, sample / (3 * spacing)))


class _Fit:
    """How many rows go through the model at once, and whether layers are computed again, so that it fits in memory."""

    def __init__(
        self,
        settings: TuningSettings,
        corpus: RowCorpus,
        base: Pretrained,
        device: Accelerator,
        dtype: str,
        adapter: Adapter | None,
        objective: Objective,
    ) -> None:
        self.settings, self.base, self.device = settings, base, device
        self.number = 4 if dtype == "float32" else 2
        self.is_flash = keeps_no_probabilities(device.kind, dtype)
        self.beside = objective.bytes_beside(self.number)
        self.adapter = adapter
        store = corpus.train
        self.per_row = store.num_inputs / store.num_rows
        self.longest = int(store.lengths.max()) * store.segments_per_row

    def choose(self, why: dict[str, str]) -> tuple[int, int]:
        """Return (rows of a micro-batch, `Decoder.recompute`).

        Raises ResourceError, and UsageError for rows that were asked for and do not divide the batch.
        """
        wanted, asked = self.settings.batch_rows, self.settings.micro_rows
        parts_of = [n for n in range(wanted, 0, -1) if wanted % n == 0]
        if asked is not None and asked not in parts_of:
            fix = f"give one of {', '.join(map(str, reversed(parts_of)))}"
            raise UsageError(f"--micro-rows {asked} does not divide --batch-rows {wanted}", fix)
        parts_of = parts_of if asked is None else [asked]
        rows = asked or next((n for n in parts_of if n * self.per_row <= MOST_AT_ONCE), 1)
        again = [1] if self.settings.recompute else [0] if self.settings.recompute is False else [0, 1]
        free = self.device.memory_free if self.device.memory_free is not None else memory().available
        room = free * ROOM
        for recompute in again:
            for n in (m for m in parts_of if m <= rows):
                if self.needed(n, recompute) <= room:
                    self._explain(n, rows, recompute, why)
                    return n, recompute
        at_once = f"with {asked} rows at once" if asked else "even one row at a time"
        raise ResourceError(
            f"tuning {self.base.name} needs about {gigabytes(self.needed(parts_of[-1], again[-1]))} of memory here, "
            f"{at_once}, and {gigabytes(free)} are free",
            self._proposal(),
        )

    def _explain(self, rows: int, most: int, recompute: int, why: dict[str, str]) -> None:
        why["micro_rows"] = "the whole batch at once" if rows == self.settings.batch_rows else (
            f"{MOST_AT_ONCE:,} tokens at once at most" if rows == most else "more do not fit in memory at once"
        )  # fmt: skip
        if self.settings.recompute is None:
            why["recompute"] = "memory is short otherwise" if recompute else "memory suffices"

    def _proposal(self) -> str:
        if self.settings.micro_rows is not None and self.settings.micro_rows > 1:
            return f"--micro-rows {self.settings.micro_rows // 2}, or leave it out: as many are taken as fit"
        if self.beside > self._weights():
            return "`settle distill --cache` records the teacher's distributions with llama.cpp first"
        if self.adapter is None:
            return "--adapter lora needs a fraction of that"
        if self.settings.quantize is None:
            if any(GGML[kind].quantized for kind in self.base.kinds):
                return "--quantize as-is keeps the frozen weights in the blocks of their file, or take a smaller model"
            return "--quantize nf4 keeps the frozen weights in a quarter, or take a smaller model"
        return f"--rows.max-tokens {max(64, self.longest // 2)} makes rows shorter, or take a smaller model"

    def needed(self, rows: int, recompute: int) -> float:
        """Return the bytes that training adds to the process's memory before the model is loaded."""
        part = self.base.part
        adapter = None if self.adapter is None else self.adapter.kept_numbers(part.linears())
        options = part.options()
        layers, of_input = len(options.layers), self.number * options.layers[-1].width
        all_layers = part.activation_bytes_per_token(int(self.per_row), self.number, adapter, self.is_flash)
        kept, working = kept_activations(layers, all_layers / layers, of_input, bool(recompute))
        per_token = working + kept if recompute else all_layers
        return self._weights() + self.beside + max(rows * self.per_row, self.longest) * per_token

    def _weights(self) -> float:
        part, settings = self.base.part, self.settings
        if self.adapter is None:
            cast = self.number if self.number < WEIGHT else 0
            return precision(ADAMW_STATE, cast, is_saved=False).of(part.num_parameters).states
        inside, tables = part.num_non_embedding_parameters, part.num_parameters - part.num_non_embedding_parameters
        of_file = sum(self.base.kinds.values()) / max(1, part.num_parameters)
        per_number: dict[str | None, float] = {None: self.number, "nf4": NF4, "as-is": of_file}
        of_table = self.number if settings.quantize != "as-is" else of_file
        numbers = self.adapter.num_parameters(part.linears())
        adapter = precision(ADAMW_STATE, is_saved=False).of(numbers).states
        head = tables / (1 if part.tie_word_embeddings else 2) if settings.quantize == "as-is" else 0
        return inside * per_number[settings.quantize] + tables * of_table + adapter + head * self.number
