"""settle tune with an encoder: a reranker over it (`--objective rank`), or the encoder itself (`contrastive`).

A GGUF file gives a reranker of settle's own or a GGUF file, a folder in Hugging Face's layout such a folder. Legend: P
pairs.
"""

import importlib.metadata
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import load_file

from settle.audit.session import declared
from settle.base.amounts import count, seconds
from settle.base.choice import Choice
from settle.base.errors import GateError, ProofError, UsageError
from settle.base.events import PlanReady, Say
from settle.base.files import write_json
from settle.base.run import Run
from settle.base.version import __version__
from settle.data.batches import Batch, RowBatches, held_out_rows
from settle.data.pairs import PairCorpus, prepare_pairs
from settle.data.tokenizer.fast import fast_tokenizer
from settle.evaluate.pair_scores import compare_scores, pair_scores
from settle.formats import Weights, write_array
from settle.formats.gguf import read_gguf
from settle.formats.gguf.layout import Entry, layout
from settle.formats.safetensors import write_safetensors
from settle.jobs.job import RunJob, end_dry, require_same_data
from settle.jobs.settings import TuneSettings
from settle.jobs.training_stages import LoopContext, finish, note_judged, train_loop, with_network
from settle.library.resolve import resolve_whole
from settle.library.run_models import record_made
from settle.machine import keep_freed_memory, use_torch_threads
from settle.model.encoder import Encoder, Reranker, encoder_of_gguf, file_names, gguf_names
from settle.model.encoder_folder import Classifier, EncoderFolder, write_encoder
from settle.model.encoders import PairScorer, TextEncoder
from settle.model.layers.freezable import as_kind
from settle.model.source import Source
from settle.train.evaluation import HeldOut, evaluate
from settle.train.gradient import backward
from settle.train.loop import Loop
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from settle.train.proof.definition import require_definition
from settle.train.recovery import LoopSession
from settle.train.state import LoopPlan
from settle.train.trainer import Trainer
from settle.train.verdict import verdict

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EPOCHS = 3  # expected length of a run without a budget
RATES = {"rank": 5e-4, "contrastive": 3e-5}  # of new weights, and of pretrained ones
FOLDER_RATE = 3e-5  # of a whole encoder with its head
BETA2, EPS, WEIGHT_DECAY = 0.99, 1e-8, 0.01
SCORED = 16  # pairs of a batch of held-out text, and of the proof
APART = 1e-3  # of the logits or cosines of a pair scored alone and among others, at most
ROUNDED_APART = 0.02  # of a logit or a cosine after rounding to half precision, at most
RERANKER = "reranker.safetensors"
FOLDERS = {"rank": "reranker", "contrastive": "encoder"}


@dataclass
class EncoderContext(LoopContext):
    """What the stages make.

    file or hf: the base, a GGUF file or a folder. model: the reranker or the encoder, what is trained.
    """

    settings: TuneSettings
    source: Source = field(init=False)
    file: Weights = field(init=False)
    hf: EncoderFolder | None = field(init=False)
    tokenizer: "Tokenizer" = field(init=False)
    corpus: PairCorpus = field(init=False)
    plan: LoopPlan = field(init=False)
    objective: Objective = field(init=False)
    optimizer: Optimizer = field(init=False)
    model: TextEncoder | PairScorer = field(init=False)

    @property
    def objective_name(self) -> str:
        return str(self.settings.objective.name or "rank")

    def held_out(self, side: str) -> HeldOut:
        store = getattr(self.corpus, side)
        per_row = store.num_inputs / store.num_rows
        batches = list(held_out_rows(store, round(SCORED * per_row)))
        return HeldOut(batches, np.zeros(self.tokenizer.get_vocab_size(), np.int64))


def base(c: EncoderContext) -> None:
    """Open the encoder's file and its tokenizer; what does not go with an encoder is refused."""

    s = c.settings
    if c.objective_name not in RATES:
        raise UsageError(f"--objective {c.objective_name} does not train an encoder", f"give {' or '.join(RATES)}")
    if s.optimizer.name != "adamw":
        raise UsageError("an encoder is trained by adamw", "leave --optimizer out")
    for name in ("quantize", "score", "sample"):
        if getattr(s, name) is not None:
            raise UsageError(f"--{name} is for models that write", "leave it out")
    c.source, c.hf = resolve_whole(s.model).source, None
    if c.source.kind == "gguf":
        c.file = read_gguf(c.source.path)
        c.tokenizer = fast_tokenizer(c.file.metadata)
        return
    c.hf = EncoderFolder.open(c.source.path)
    if c.objective_name == "contrastive" and c.hf.use != "embed":
        raise UsageError(f"{c.source.name} has a head for labels", "--objective rank trains it")
    c.tokenizer = c.hf.tokenizer


def data(c: EncoderContext) -> None:
    """Pairs, tokenized and split by question."""
    prefixes = (c.hf.query_prefix, c.hf.document_prefix) if c.hf and c.hf.use == "embed" else ("", "")
    c.corpus = prepare_pairs(c.settings.inputs, c.tokenizer, c.settings.rows.held_out, prefixes)
    if c.record is not None:
        require_same_data(c, c.corpus.fingerprint)
    sides = [f"{store.num_rows:,} {use}" for store, use in zip(
        (c.corpus.train, c.corpus.held_out, c.corpus.judgement),
        ("pairs to train on", "to choose the weights by", "to judge them"), strict=True,
    )]  # fmt: skip
    c.events.emit(Say(text=", ".join(sides)))


def plan(c: EncoderContext) -> None:
    """Every number of the run."""
    s, train = c.settings, c.corpus.train
    tokens = max(1, round(train.num_inputs * s.batch_rows / train.num_rows))
    epoch = train.num_rows / s.batch_rows
    limits = (
        s.steps,
        max(1, count(s.tokens) // tokens) if s.tokens else None,
        max(1, round(s.epochs * epoch)) if s.epochs else None,
    )
    most = min((limit for limit in limits if limit), default=None)
    expected = most or max(1, math.ceil(EPOCHS * epoch))
    c.plan = LoopPlan(
        tokens_per_step=tokens,
        sequence_length=int(train.lengths.max()) - 1,
        warmup_steps=min(100, max(2, expected // 25)),
        max_steps=most,
        seconds=seconds(s.time) if s.time else None,
        decay_fraction=0.4,
        tolerance=s.tolerance,
        checkpoint_steps=max(10, math.ceil(expected / 50)),
        seed=s.seed,
        threads=use_torch_threads(s.threads),
    )
    c.objective = Objective.make(c.objective_name, s.objective.settings)
    rate = FOLDER_RATE if c.hf else RATES[c.objective_name]
    rates = {"lr": rate, "table_lr": rate, "beta2": BETA2, "eps": EPS}
    chosen: Choice = s.optimizer.over(rates | {"weight_decay": WEIGHT_DECAY})
    c.optimizer = Optimizer.make("adamw", chosen.settings)
    why = {"warmup_steps": f"4 % of about {expected:,} steps", "batch_tokens": f"{s.batch_rows} pairs"}
    values = {"model": c.source.name, "batch_tokens": tokens, "steps": most, "warmup_steps": c.plan.warmup_steps,
              "objective": {"name": c.objective_name, **c.objective.model_dump()},
              "optimizer": {"name": "adamw", **c.optimizer.model_dump()}, "threads": c.plan.threads}  # fmt: skip
    c.events.emit(PlanReady(values=values, origin=dict(c.origin), why=why, full=s.dry))
    if s.dry:
        end_dry(c, {"plan": values})


def build(c: EncoderContext) -> None:
    """Build the encoder, and the reranker over it where that is what is trained."""
    keep_freed_memory()
    torch.manual_seed(c.plan.seed)
    if c.hf:
        c.model = c.hf.classifier() if c.objective_name == "rank" else c.hf.encoder()
    else:
        encoder = encoder_of_gguf(c.file)
        c.model = Reranker(encoder) if c.objective_name == "rank" else encoder


def proof(c: EncoderContext) -> None:
    """Check that scores are batch-independent, the loss is its formula, and a step down the gradient lowers it.

    Then write plan.json.
    """
    if c.record is not None:
        return
    batch = RowBatches(c.corpus.train, min(SCORED, c.corpus.train.num_rows), c.plan.seed).at(0)
    definition = require_definition(c.model, c.objective, batch)
    checks = [_proves_packing(c, batch), {"check": "definition", "detail": definition}, _proves_descent(c, batch)]
    c.record = {
        "asked": c.settings.model_dump(mode="json"),
        "loop": c.plan.model_dump(),
        "objective": c.objective_name,
        "objective_settings": c.objective.model_dump(),
        "optimizer": c.optimizer.model_dump(),
        "base": {"name": c.source.name, "path": str(c.source.path.resolve()), "sha256": c.source.sha256},
        "corpus": c.corpus.fingerprint,
        "versions": {"settle": __version__, "torch": importlib.metadata.version("torch")},
        "proof": checks,
        "reaches": declared(),
    }
    write_json(c.run.path / "plan.json", c.record)


def _proves_packing(c: EncoderContext, batch: Batch) -> dict[str, str | float]:
    bounds = batch.cu_seqlens[::2]
    together = pair_scores(c.model, [batch])
    alone = pair_scores(c.model, [_one(batch, a, b) for a, b in zip(bounds, bounds[1:], strict=False)])
    apart = float(np.abs(together - alone).max())
    if apart > APART:
        raise ProofError(f"a pair's score moves by {apart:.1e} with the pairs beside it", "report it with this recipe")
    return {"check": "packing", "error": apart, "bar": APART}


def _one(batch: Batch, start: int, end: int) -> Batch:
    """Return the pair of a batch that lies from `start` to `end`."""
    seqlens = batch.cu_seqlens[(batch.cu_seqlens >= start) & (batch.cu_seqlens <= end)] - start
    part = slice(start, end)
    return Batch(batch.inputs[part], batch.targets[part], seqlens.astype(np.int32), batch.positions[part])


def _proves_descent(c: EncoderContext, batch: Batch) -> dict[str, str | float]:
    """Along the gradient the loss falls as the gradient says, to a tenth."""
    model = c.model.eval()
    own = list(model.trainable().values())
    before = backward(c.model, c.objective, [batch])
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in own if p.grad is not None))
    step = 1e-3 * before / max(norm, 1e-12) ** 2
    with torch.no_grad():
        moved = [(p, p.grad.mul(step)) for p in own if p.grad is not None]
        for parameter, change in moved:
            parameter.sub_(change)
        after = evaluate(c.model, c.objective, HeldOut([batch], np.zeros(2, np.int64)), 0, 0).loss
        for parameter, change in moved:
            parameter.add_(change)
    model.zero_grad(set_to_none=True)
    model.train()
    ratio = (before - after) / (1e-3 * before)
    if not 0.5 < ratio < 1.5:
        raise ProofError(f"a step down the gradient lowers the loss by {ratio:.2f} times what it should", "report it")
    return {"check": "descent", "ratio": ratio}


def loop(c: EncoderContext) -> None:
    """Train until the model has settled, or the budget is spent, or something stops the run."""
    c.spending.start("cpu", c.settings.watts)
    batches = RowBatches(c.corpus.train, c.settings.batch_rows, c.plan.seed)
    trainer = Trainer(c.plan, c.model, c.objective, c.optimizer, batches)
    session = LoopSession(
        c.run, c.events, c.stopping, dict(c.record or {}), c.spending, elapsed=lambda: c.spending.total
    )
    c.loop = Loop(trainer, c.held_out("held_out"), session)
    train_loop(c)


def judge(c: EncoderContext) -> None:
    """Judge the loop: the verdict, and the loss of the best weights on pairs that chose nothing."""
    state = c.outcome.state
    c.model.load_trainable(c.outcome.best)
    tokens = state.step * c.plan.tokens_per_step
    c.verdict = verdict(state, c.plan, tokens / max(state.seconds, 1e-9))
    note_judged(c, evaluate(c.model, c.objective, c.held_out("judgement"), state.best_step, tokens).figures(), tokens)
    c.actual["time"] = c.loop.spent()["seconds"]


def export(c: EncoderContext) -> None:
    """Export the reranker as safetensors, the encoder as GGUF, either of a folder as one.

    Read again, it scores as the trained one does.
    """
    if not c.is_usable:
        return
    model, batches = c.model.eval(), c.held_out("judgement").batches[:1]
    if c.hf:
        files, c.gate = export_folder(model, c.hf, c.run.out / FOLDERS[c.objective_name], batches)
    elif isinstance(model, Reranker):
        files, c.gate = export_reranker(model, c.source, c.run, batches)
    else:
        files, c.gate = export_encoder(as_kind(model, Encoder), c.file, c.run, batches)
        record_made(c.run, files)
    c.add_files(files)


def compare(c: EncoderContext) -> None:
    """Compare ranking on held-out pairs with the base model's cosine similarity."""
    if not c.is_usable or not c.settings.compare:
        return
    batches = c.held_out("judgement").batches
    base_scores = pair_scores(_before(c), batches)
    comparison = compare_scores(base_scores, pair_scores(c.model, batches), batches)
    c.comparison = comparison
    c.events.emit(Say(text=str(comparison["headline"])))


def _before(c: EncoderContext) -> TextEncoder | PairScorer:
    """Return what the trained model is compared with: the base's cosine, or its own head."""
    if c.hf is None:
        return encoder_of_gguf(c.file)
    return c.hf.encoder() if c.hf.use == "embed" else c.hf.classifier()


def result(c: EncoderContext) -> None:
    """Draw the picture, and write result.json last."""
    finish(c, with_network(c))


def export_reranker(
    model: Reranker, base: Source, run: Run, batches: Sequence[Batch]
) -> tuple[dict[str, str], dict[str, float]]:
    """Write the reranker's own weights in f16; return the files by kind, and the gate's report."""
    path, names = run.out / RERANKER, file_names(len(model.encoder.blocks))
    weights = {names.get(n, n): weight.detach().numpy().astype(np.float16) for n, weight in model.state_dict().items()}
    about = {"format": "settle-reranker", "encoder": base.name, "encoder_sha256": base.sha256}
    write_safetensors(path, weights, "f16", about)
    read = Reranker(model.encoder).eval()
    stored = load_file(path)
    read.load_state_dict({n: torch.from_numpy(stored[names.get(n, n)].astype(np.float32)) for n in read.state_dict()})
    return {"reranker": str(path)}, _gate(pair_scores(model, batches), pair_scores(read, batches), path)


def export_encoder(
    model: Encoder, base: Weights, run: Run, batches: Sequence[Batch]
) -> tuple[dict[str, str], dict[str, float]]:
    """Write the base's file with the trained weights, matrices in f16; return the files and the gate's report."""
    path, names = run.out / f"{run.name}.gguf", gguf_names(len(model.blocks))
    own = dict(model.named_parameters())
    arrays = {name: own[names[name]].detach().numpy() for name in base.tensors if name in names}
    stored = {
        n: a.astype(np.float16 if a.ndim == 2 and n.startswith(("blk.", "token_embd.")) else np.float32)
        for n, a in arrays.items()
    }
    entries = [Entry(n, a.shape, "F16" if a.dtype == np.float16 else "F32", a.nbytes) for n, a in stored.items()]
    planned = layout(base, entries, {"general.name": run.name})
    with path.open("wb") as out:
        out.write(planned.header)
        for entry in entries:
            write_array(out, stored[entry.name])
            out.write(bytes(planned.padding(entry.num_bytes)))
    read = encoder_of_gguf(read_gguf(path)).eval()
    return {"gguf": str(path)}, _gate(pair_scores(model, batches), pair_scores(read, batches), path)


def export_folder(
    model: TextEncoder | PairScorer, base: EncoderFolder, path: Path, batches: Sequence[Batch]
) -> tuple[dict[str, str], dict[str, float]]:
    """Write a folder for sentence-transformers and transformers; return the files and the gate's report."""
    again: TextEncoder | PairScorer
    if path.name == FOLDERS["rank"]:
        classifier = as_kind(model, Classifier)
        again = EncoderFolder.open(write_encoder(path, classifier.encoder, base, "f16", classifier)).classifier()
    else:
        again = EncoderFolder.open(write_encoder(path, as_kind(model, TextEncoder), base, "f16")).encoder()
    return {path.name: str(path)}, _gate(pair_scores(model, batches), pair_scores(again, batches), path)


def _gate(trained: np.ndarray, read: np.ndarray, path: Path) -> dict[str, float]:
    apart = float(np.abs(trained - read).max())
    if not apart <= ROUNDED_APART:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise GateError(
            f"{path.name} scores pairs {apart:.3f} away from the trained model", "report it with this recipe"
        )
    return {"passed": True, "largest_difference": apart, "bar": ROUNDED_APART}


JOB = RunJob(
    "tune_encoder",
    (base, data, plan, build, proof, loop, judge, export, compare, result),
    TuneSettings,
    EncoderContext,
)
