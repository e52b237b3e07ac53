"""A run that is ready for the loop: the model, data and optimizer that its plan names, built."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from settle.base.errors import FormatError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.tokenizer import Tokenizer
from settle.data.batches import Batch, Batches, RowBatches, held_out_batches, held_out_rows
from settle.data.prepare import Corpus
from settle.data.rows.prepare import RowCorpus
from settle.data.store import RowStore, TokenStore
from settle.library.pretrained import open_pretrained
from settle.machine import commanded, is_asked, keep_freed_memory, num_threads, use_torch_threads
from settle.model.adapters import Adapter
from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.model.families import of_plan
from settle.model.pretrained import Pretrained
from settle.train.checkpoint import Weights
from settle.train.evaluation import EvaluationFigures, HeldOut, evaluate
from settle.train.loop import Loop
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from settle.train.recovery import LoopSession
from settle.train.state import LoopState, Outcome
from settle.train.thread_choice import LONGEST, ThreadWatch, choose_threads
from settle.train.trainer import Trainer
from settle.train.training_plan import TrainingPlan, Tuning
from settle.train.world import World, single
from settle.train.world.weight_shards import gather, shard

IDENTITY = (
    "architecture_name", "architecture", "objective", "objective_settings", "optimizer_name", "optimizer",
    "device", "dtype", "held_out_tokens", "loop", "corpus", "tuning",
)  # fmt: skip
SHARE_OF_TIME = 0.02  # of a time budget that choosing the number of threads may take
EVALUATION_BLOCK = 2048  # tokens: many blocks make the standard error of a mean believable


@dataclass
class LiveRun:
    """What a plan names: built, and ready for the first step. world: the processes that share each step."""

    plan: TrainingPlan
    corpus: Corpus | RowCorpus
    tokenizer: Tokenizer
    architecture: Architecture
    model: Decoder
    objective: Objective
    optimizer: Optimizer
    batches: Batches | RowBatches
    selection: list[Batch]
    base: Pretrained | None = None
    world: World = field(default_factory=single)
    judged_on: HeldOut = field(init=False)  # by `judge`

    @classmethod
    def build(cls, plan: TrainingPlan, corpus: Corpus | RowCorpus, base: Pretrained | None = None) -> "LiveRun":
        """Build what the plan names.

        base: the model that is tuned, when it is open already. Raises FormatError when it is not the plan's.
        """
        use_torch_threads(plan.loop.threads)
        keep_freed_memory()
        if plan.tuning is not None:
            base = base or open_base(plan.tuning)
        architecture, model = _model(plan, base)
        objective = Objective.make(plan.objective, plan.objective_settings).prepared(model)
        return cls(
            plan=plan,
            corpus=corpus,
            tokenizer=tokenizer_of(base, corpus),
            architecture=architecture,
            model=model,
            objective=objective,
            optimizer=Optimizer.make(plan.optimizer_name, plan.optimizer),
            batches=_batches(plan, corpus),
            selection=blocks(plan, corpus.selection, plan.held_out_tokens),
            base=base,
        )

    def join(self, world: World) -> None:
        """Share each step with other processes from now on; and the weights, where the plan says so."""
        self.world = world
        if world.size > 1 and self.plan.loop.is_sharded:
            world.is_hybrid = self.plan.loop.is_hybrid
            world.copy(list(self.model.trainable().values()))  # processors differ in how they round
            shard(self.model, world, self.plan.loop.offloads)

    def leave(self, outcome: Outcome) -> Outcome:
        """End what the ranks share: rank 0 gets the best weights whole, and a model of its own.

        Of a whole model, its constants are among them.
        """
        best = outcome.best
        if self.model.is_sharded:
            best = gather(self.world, best, self.model.trainable())
            if self.world.rank == 0:
                self.model = _model(self.plan, self.base)[1]
        if self.base is None or self.whole:
            best = best | {name: p.detach() for name, p in self.model.constants().items()}
        return replace(outcome, best=best)

    @property
    def whole(self) -> bool:
        """True when every weight of a pretrained model is trained."""
        return self.base is not None and self.plan.tuning is not None and self.plan.tuning.adapter_name == "full"

    def initial(self, name: str) -> torch.Tensor:
        """Read a weight of the base, as it was before the first step."""
        assert self.base is not None
        return self.base.read(name)

    def identity(self) -> dict[str, Any]:
        """Everything that must not change between sessions, as plan.json holds it."""
        record = self.plan.to_json() | {"corpus": self.corpus.fingerprint}
        return {key: record[key] for key in IDENTITY}

    def loop(
        self,
        run: Run,
        events: Events,
        stopping: Callable[[], bool],
        spending: Callable[[], dict[str, float]] = dict,
        elapsed: Callable[[], float] | None = None,
        sample: Callable[[int, str], None] = lambda step, moment: None,
    ) -> Loop:
        """elapsed, sample: as in `LoopSession`."""
        used = self.world.spending(spending)
        identity, decode, held_out = self.identity(), self.tokenizer.decode, _size(self.corpus.held_out)

        def judged(steps: float) -> float:
            return min(held_out, self.judged_tokens(steps))

        judges = None if self.plan.loop.is_refit else judged
        session = LoopSession(run, events, stopping, identity, used, decode, elapsed, judges, sample)
        trainer, threads = self.trainer(), commanded() or self.plan.loop.threads
        most = num_threads() if self.plan.device == "cpu" and self.world.size == 1 else 1
        watch = ThreadWatch(trainer, events, num_threads(threads), most, self._threads_are_free())
        return Loop(trainer, HeldOut(self.selection, self.tokenizer.byte_length), session, watch)

    def choose_threads(self) -> None:
        """Put the number of threads that the run's own step is fastest with into the plan, unless one was asked for.

        The optimizer's state of this comparison is thrown away; the weights stay as they are.
        """
        most, budget = num_threads(), self.plan.loop.seconds
        if self.plan.device == "cpu" and most > 1 and self._threads_are_free():
            longest = LONGEST if budget is None else min(LONGEST, SHARE_OF_TIME * budget)
            self.plan = self.plan.with_threads(*choose_threads(self.trainer(), most, longest))

    def _threads_are_free(self) -> bool:
        return not is_asked() and self.plan.origin.get("threads", "default") in ("default", "measured")

    def trainer(self) -> Trainer:
        return Trainer(self.plan.loop, self.model, self.objective, self.optimizer, self.batches, self.world)

    def judge(self, weights: Weights, state: LoopState, most_tokens: float | None = None) -> EvaluationFigures:
        """Evaluate `weights` on the held-out text, which nothing has read before; report which share of it was read.

        It reads all of it, or as much as a twentieth of the run's time allows. most_tokens: instead of that, but for
        the sample of an evaluation, which is read in any case.

        The loop picks the best of many evaluations of the selection text, whose loss is too low for that; this is the
        figure to quote.
        """
        self.model.load_trainable(weights)
        most = self.judged_tokens(state.step) if most_tokens is None else most_tokens
        limit = max(self.plan.held_out_tokens, int(min(most, _size(self.corpus.held_out))))
        batches = blocks(self.plan, self.corpus.held_out, limit)
        held_out = self.judged_on = HeldOut(batches, self.tokenizer.byte_length)
        tokens = state.best_step * self.plan.loop.tokens_per_step
        figures = evaluate(self.model, self.objective, held_out, state.best_step, tokens).figures()
        total = _size(self.corpus.held_out)
        return {**figures, "held_out_share": min(1.0, held_out.num_tokens / max(1, total))}

    def judged_tokens(self, steps: float) -> int:
        """Held-out tokens that `judge` reads at most after so many steps."""
        # a forward pass is a third of a step
        affordable = int(3 * self.plan.loop.tokens_per_step * steps / 20)
        return max(self.plan.held_out_tokens, affordable)


def _model(plan: TrainingPlan, base: Pretrained | None) -> tuple[Architecture, Decoder]:
    """Build what is trained, as it is before the first step."""
    if plan.tuning is not None:
        base = base or open_base(plan.tuning)
        architecture, model = base.part, tuned_model(plan, plan.tuning, base)
    else:
        architecture = of_plan(plan.architecture_name, plan.architecture)
        model = architecture.build(plan.loop.seed, plan.device)
    model.compute_dtype = getattr(torch, plan.dtype)
    return architecture, model


def _batches(plan: TrainingPlan, corpus: Corpus | RowCorpus) -> Batches | RowBatches:
    loop = plan.loop
    if isinstance(corpus, RowCorpus):
        assert plan.tuning is not None
        return RowBatches(corpus.train, plan.tuning.rows, loop.seed)
    return Batches(corpus.train, loop.sequence_length, loop.tokens_per_step // loop.micro_batches, loop.seed)


def blocks(plan: TrainingPlan, store: TokenStore, limit: int) -> list[Batch]:
    """At most `limit` tokens of a store, in blocks: sixteen at least, since their spread is how sure a loss is."""
    if isinstance(store, RowStore):
        return list(held_out_rows(store, min(EVALUATION_BLOCK, max(1, min(limit, store.num_inputs) // 16)), limit))
    length = plan.loop.sequence_length
    block = min(EVALUATION_BLOCK, max(length, min(limit, store.num_tokens) // 16))
    return list(held_out_batches(store, length, block, limit))


def _size(store: TokenStore) -> int:
    """Tokens of a store that are put into the model."""
    return store.num_inputs if isinstance(store, RowStore) else store.num_tokens


def tokenizer_of(base: Pretrained | None, corpus: Corpus | RowCorpus) -> Tokenizer:
    """Return the run's tokenizer, with the template that its rows were rendered with."""
    if isinstance(corpus, Corpus):
        return corpus.tokenizer
    assert base is not None
    own = base.tokenizer
    return own.with_template(corpus.template) if corpus.template and corpus.template != own.chat_template else own


def open_base(tuning: Tuning) -> Pretrained:
    """Open the model that is tuned. Raises FormatError when its files are not what the plan was made for."""
    base = open_pretrained(tuning.base)
    if base.source.sha256 != tuning.base_sha256:
        raise FormatError(
            f"{base.name} is not the model that the run began with: its sha256 is {base.source.sha256[:12]}…, it was "
            f"{tuning.base_sha256[:12]}…",
            f"put it back as it was, at {tuning.base}",
        )
    return base


def adapter_of(tuning: Tuning) -> Adapter:
    """Make the adapter that a plan names."""
    return Adapter.make(tuning.adapter_name, tuning.adapter)


def tuned_model(plan: TrainingPlan, tuning: Tuning, base: Pretrained) -> Decoder:
    """Load the base with what is to be trained, as it is before the first step."""
    dtype, quantize = getattr(torch, plan.dtype), tuning.quantize
    whole = tuning.adapter_name == "full"
    model = base.load(trainable=whole, dtype=dtype, quantize=quantize)  # type: ignore[arg-type]
    model = model.to(plan.device)
    if not whole:
        adapter_of(tuning).apply(model, plan.loop.seed)
    model.recompute = tuning.recompute
    model.float32_scores = tuning.float32_scores
    return model
