"""settle tune with an encoder: a reranker over it (`--objective rank`), or the encoder itself (`contrastive`)."""

from settle.jobs.job import RunJob
from settle.jobs.settings import TuneSettings
from settle.jobs.tune_encoder.stages import (
    EncoderContext,
    base,
    build,
    compare,
    data,
    export,
    judge,
    loop,
    plan,
    proof,
    result,
)

JOB = RunJob(
    "tune_encoder",
    (base, data, plan, build, proof, loop, judge, export, compare, result),
    TuneSettings,
    EncoderContext,
)
