"""settle tune --objective decision: a model that answers typed questions with calibrated probabilities."""

from settle.jobs.job import RunJob
from settle.jobs.proof_stages import proof, scores
from settle.jobs.settings import TuneSettings
from settle.jobs.training_stages import build, earlier_session, judge, loop, result
from settle.jobs.tune_decision.export import export
from settle.jobs.tune_decision.stages import DecisionContext, base, compare, data, zero_shot
from settle.jobs.tuning_stages import again, forecast, plan, probe

JOB = RunJob(
    "tune_decision",
    (
        earlier_session, base, data, plan, build, scores, zero_shot, probe, forecast, proof(again),
        loop, judge, compare, export, result,
    ),
    TuneSettings,
    DecisionContext,
    is_shared=True,
)  # fmt: skip
