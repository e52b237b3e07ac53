"""The loss of a batch before the first step: a model's that knows nothing, a base's, or a student's beside its teacher.

Legend: V vocabulary.
"""

import math
from collections.abc import Sequence

import torch

from settle.base.errors import ProofError
from settle.data.batches import Batch
from settle.model.decoder import Decoder
from settle.train.objectives import Objective
from settle.train.proof.source import SourceRow

AGREEING_NATS = 1e-4  # below this KL a student and its teacher differ by rounding only


def require_first_loss(
    model: Decoder, objective: Objective, batch: Batch, rows: Sequence[SourceRow], vocab_size: int, tuned: bool
) -> str:
    """The first loss is what it must be; returns it in words.

    rows: what `batch` is made of. tuned: the model is a pretrained one. Raises ProofError.
    """
    with torch.no_grad():
        total, count = objective.batch_loss(model, batch)
    named = "; ".join(map(str, rows[:3]))
    if count == 0:
        raise ProofError(f"the first batch has nothing to learn from: {named}", "check these rows of your data")
    loss, expected = float(total) / count, math.log(vocab_size)
    if objective.first_loss is not None:
        if not abs(loss - objective.first_loss) < 0.05:
            raise ProofError(
                f"the first loss is {loss:.3f}, and it is {objective.first_loss:.3f} for every model",
                f"the base is not what the adapter begins as: check these rows: {named}",
            )
        return f"{loss:.3f}, as it must be"
    if tuned:
        return _of_pretrained(loss, objective.reference(model, batch), named, objective, vocab_size)
    if not abs(loss - expected) < 0.1 * expected:
        raise ProofError(
            f"the first loss is {loss:.3f}, an untrained model's is ln({vocab_size}) = {expected:.3f}",
            f"the first weights or the targets are wrong: check the model's settings and these rows: {named}",
        )
    return f"{loss:.3f} nats, ln(V) = {expected:.3f}"


def _of_pretrained(
    loss: float, reference: tuple[float, int] | None, named: str, objective: Objective, vocab_size: int
) -> str:
    """reference: the teacher's own loss as a sum of nats and a count; None without a teacher."""
    expected = math.log(vocab_size)
    who, nats = ("base", loss) if reference is None else ("teacher", reference[0] / reference[1])
    if not nats < 1.25 * expected:
        raise ProofError(
            f"the {who} finds these rows less likely than guessing: {nats:.3f} nats, ln({vocab_size}) = {expected:.3f}",
            f"its tokenizer or its template does not fit it, or these rows are no text: {named}",
        )
    if reference is None:
        return f"{loss:.3f} nats, guessing is {objective.guessing(vocab_size)}"
    if loss < AGREEING_NATS:
        raise ProofError(
            f"student and teacher already agree: KL {loss:.1e} nats on the first rows",
            "there is nothing to learn: choose a smaller student, or other rows",
        )
    return f"{loss:.3f} from the teacher, who pays {nats:.3f} nats; guessing is ln(V) = {expected:.3f}"
