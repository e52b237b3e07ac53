"""What the doctor says of a finding and of its proof."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from settle.base.events import Listing
from settle.base.statistics import PairedTest
from settle.doctor.checks import Check
from settle.doctor.findings import Finding
from settle.doctor.subject import Subject
from settle.doctor.trial import Trial
from settle.experiment.two_arms import Proof


def findings_listing(subject: Subject, findings: Sequence[Finding]) -> Listing:
    """number, cause, evidence, fix: one line a finding."""
    rows: list[list[object]] = []
    for finding in findings:
        check = Check.part(finding.check)
        fix = check().fix(finding, subject)
        rows.append([check.number, finding.what, "; ".join(finding.evidence), fix.command])
    return Listing(
        title=subject.name,
        columns=["", "likely", "because", "fix"],
        rows=rows,
        note="likely, not proven: `--prove NUMBER` re-runs it with that one thing changed, `--prove all` each of them",
    )


def proof_sentences(finding: Finding, trial: Trial, proof: Proof, folder: Path) -> Iterator[str]:
    """What an A/B came to."""
    for side, why in proof.failed.items():
        yield f"{finding.what}: still only likely, since {side} could not be measured: {why}"
    if proof.effect is not None:
        yield f"{proof.state}: {finding.what}. {effect_text(trial, proof.effect)}"
    if proof.retest is not None:
        held = "holds" if proof.holds else "does not hold"
        yield f"the fix {held} on other items: {effect_text(trial, proof.retest)}"
    if proof.guards is not None and proof.harms:  # less is better there, and tests have it the other way round
        yield f"something else got worse with it: from {-proof.guards.base:.3g} to {-proof.guards.tuned:.3g}"
    yield f"every measurement is in {folder}; `settle doctor {folder}` runs it again"


def effect_text(trial: Trial, test: PairedTest) -> str:
    """The measure before and after the change, with the interval of the difference."""
    sign = -1.0 if trial.lower else 1.0
    before, after = sign * test.base, sign * test.tuned
    low, high = sorted((sign * test.difference.low, sign * test.difference.high))
    if trial.timed:
        ratio, ends = math.exp(after - before), (math.exp(low), math.exp(high))
        middle = f"{math.exp(before):.3g} → {math.exp(after):.3g} {trial.unit}".rstrip()
        return f"{trial.measure} {middle}, × {ratio:.2f} (95 %: {ends[0]:.2f} to {ends[1]:.2f}, {test.rows} pairs)"
    middle = f"{before:.3g} → {after:.3g} {trial.unit}".rstrip()
    return f"{trial.measure} {middle}, {after - before:+.3g} (95 %: {low:+.3g} to {high:+.3g}, {test.rows} items)"
