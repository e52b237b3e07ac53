"""The plan of a training run: every number with its origin. Resolved once, before anything is built."""

import math
from collections.abc import Mapping

from settle.base.amounts import count
from settle.base.errors import UsageError
from settle.data.prepare import Corpus
from settle.machine import Accelerator, accelerator, probe_dtype, use_torch_threads
from settle.model.architectures import Architecture
from settle.model.families import family_named
from settle.plan.loss_law import counted
from settle.plan.settings import RunSettings, TrainingSettings
from settle.plan.size import EPOCHS, Size, choose_size
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from settle.train.settled import sample_size
from settle.train.state import LoopPlan
from settle.train.training_plan import TrainingPlan

FEWEST_DECAYING = 100  # steps, however few the passes over the text


def plan_training(settings: TrainingSettings, origin: dict[str, str], corpus: Corpus, spent: float) -> TrainingPlan:
    """Plan every number of the run. `origin`: the source of each setting; `spent`: seconds that preparing took.

    A time budget is for everything, so the loop gets what preparation and export leave. Raises UsageError,
    ResourceError.
    """
    device = accelerator(settings.device)
    require_dtype(settings.dtype, device)
    threads = use_torch_threads(settings.threads)
    # levels on which a network may rest while it trains; counted by now, so that nothing disturbs what is timed below
    _, bigram, trigram, *_ = counted(corpus).ngrams[-1][1]
    why: dict[str, str] = {}
    size = choose_size(settings, corpus, device, spent, why)
    architecture = family_named(settings.architecture).sized(size.parameters, corpus.tokenizer.vocab_size, size.context)
    tokenizer = corpus.tokenizer
    architecture = architecture.model_copy(update={"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id})
    objective = str(settings.objective.name)
    objective_settings = Objective.make(objective, settings.objective.settings).model_dump()
    require_sharding(settings, Objective.part(objective), architecture, device.kind, is_whole=True)
    dtype = choose_dtype(settings.dtype, device, shapes(architecture, size.micro_tokens), why)
    loop = _loop(settings, size, corpus.train.num_tokens, threads, why)
    tokens = min(size.expected_tokens, (loop.max_steps or math.inf) * loop.tokens_per_step)
    optimizer = _against_memorizing(settings, tokens, corpus.train.num_tokens, size.tokens_per_step, why)
    selection = min(corpus.selection.num_tokens, sample_size(corpus.train.num_tokens, architecture.num_parameters))
    why["held_out_tokens"] = f"{selection:,} of {corpus.selection.num_tokens:,}: so that evaluating costs a few percent"
    return TrainingPlan(
        architecture=architecture.model_dump(),
        architecture_name=settings.architecture,
        objective=objective,
        objective_settings=objective_settings,
        optimizer_name=str(settings.optimizer.name),
        optimizer=optimizer.model_dump(),
        loop=loop.model_copy(update={"bigram_loss": bigram, "trigram_loss": trigram}),
        device=device.kind,
        dtype=dtype,
        held_out_tokens=selection,
        origin=origins(origin, settings, why, {"optimizer": optimizer.model_dump(), "objective": objective_settings}),
        why=why,
    )


def _against_memorizing(
    settings: TrainingSettings, tokens: float, unique: int, tokens_per_step: int, why: dict[str, str]
) -> Optimizer:
    """Return the optimizer, with the weight decay that suits how often the text is seen where none was asked for."""
    optimizer = Optimizer.make(str(settings.optimizer.name), settings.optimizer.settings)
    if "weight_decay" in settings.optimizer.settings:
        return optimizer
    passes = tokens / unique
    suited = optimizer.against_memorizing(passes, unique / tokens_per_step)
    if suited != optimizer:
        why["optimizer.weight_decay"] = f"so that {passes:,.1f} passes over the text teach and are not memorized"
    return suited


def _loop(settings: TrainingSettings, size: Size, unique: int, threads: int, why: dict[str, str]) -> LoopPlan:
    """Plan the loop, with a warm-up that follows the corpus and not the budget, unless that is short.

    The same run then stops at the same step whatever budget was named.
    """
    budget = [s for s in (settings.steps, _steps(settings.tokens, size.tokens_per_step)) if s]
    max_steps = min(budget) if budget else None
    expected = max_steps or max(1, size.expected_tokens // size.tokens_per_step)
    natural = EPOCHS * unique // size.tokens_per_step
    warmup = max(10, min(200, natural // 50, expected // 20))
    longest = max(FEWEST_DECAYING, round(settings.decay_passes * unique / size.tokens_per_step))
    if settings.decay_passes and expected > unique / size.tokens_per_step:
        why["decay_passes"] = f"{longest:,} steps at most: a longer decay memorizes the text"
    why["warmup_steps"] = f"2 % of {EPOCHS} passes over the text, at most 5 % of the budget, 10 to 200"
    return LoopPlan(
        tokens_per_step=size.tokens_per_step,
        micro_batches=size.tokens_per_step // size.micro_tokens,
        sequence_length=size.context,
        warmup_steps=warmup,
        max_steps=max_steps,
        seconds=size.seconds,
        decay_fraction=0.4 if expected < 2000 else 0.25,
        longest_decay=longest if settings.decay_passes else None,
        average=settings.average,
        tolerance=settings.tolerance,
        checkpoint_steps=max(20, math.ceil(expected / 50)),
        **sharding(settings),
        seed=settings.seed,
        threads=threads,
    )


def _steps(tokens: str | None, tokens_per_step: int) -> int | None:
    return max(1, count(tokens) // tokens_per_step) if tokens else None


def choose_dtype(
    requested: str | None, device: Accelerator, products: list[tuple[int, int, int]], why: dict[str, str]
) -> str:
    """Return the type to compute in: as asked, or the faster one at these products."""
    if requested is not None:
        return requested
    probe = probe_dtype(products, device, seconds=0.1)
    why["dtype"] = probe.why
    return probe.dtype


def require_dtype(requested: str | None, device: Accelerator) -> None:
    """Raise UsageError for a type that this device does not compute in well."""
    if requested not in (None, "float32", *device.dtypes):
        raise UsageError(
            f"{requested} is not for {device.kind} here",
            f"choose --dtype {' or '.join(device.dtypes)}, or leave it out",
        )


def require_sharding(
    settings: RunSettings, objective: type[Objective], architecture: Architecture, device: str, is_whole: bool
) -> None:
    """Raise UsageError where ranks cannot share out the weights. is_whole: whether every weight is trained."""
    if settings.offload and settings.sharding == "none":
        raise UsageError("--offload is for weights that ranks share out", "add --sharding full, or leave it out")
    if settings.offload and device != "cuda":
        raise UsageError(
            f"--offload moves weights from a CUDA card to the host's memory, and this run computes on {device}",
            "leave --offload out, or start the run where there is a card",
        )
    if settings.sharding == "none":
        return
    asked = f"--sharding {settings.sharding}"
    if not is_whole:
        raise UsageError(
            f"{asked} is for runs that train every weight: an adapter's states are small",
            "leave --sharding out, or --adapter full",
        )
    if not objective.takes_one_pass:
        raise UsageError(f"{asked} does not go with this objective", "leave --sharding out")
    if any(layer.experts is not None for layer in architecture.options().layers):
        raise UsageError(f"{asked} does not go with a mixture of experts", "leave --sharding out")


def sharding(settings: RunSettings) -> dict[str, bool]:
    """Return what a loop's plan says of how ranks share out the weights."""
    is_sharded, is_hybrid = settings.sharding != "none", settings.sharding == "hybrid"
    return {"is_sharded": is_sharded, "is_hybrid": is_hybrid, "offloads": settings.offload}


def shapes(architecture: Architecture, tokens: int) -> list[tuple[int, int, int]]:
    """Return (M, K, N) of the products of one layer over that many tokens: qkv, output, gate and up, down."""
    layer = architecture.options().layers[0]
    width, inner, mixed = layer.width, layer.inner, layer.heads * layer.head_dim
    heads = mixed + 2 * layer.kv_heads * layer.head_dim
    return [(tokens, width, heads), (tokens, mixed, width), (tokens, width, 2 * inner), (tokens, inner, width)]


def origins(
    origin: dict[str, str], settings: RunSettings, why: dict[str, str], groups: Mapping[str, Mapping[str, object]]
) -> dict[str, str]:
    """Return the origin of each number.

    groups: the settings of parts, by the name of the setting that chooses the part.
    """
    derived = {key: "measured" if text.startswith("measured") else "derived" for key, text in why.items()}
    of_parts = {
        f"{group}.{key}": origin.get(f"{group}.{key}", "default") for group, values in groups.items() for key in values
    }
    return {**origin, **of_parts, **{k: v for k, v in derived.items() if origin.get(k, "default") == "default"}}
