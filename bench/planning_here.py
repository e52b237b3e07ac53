"""Predicted beside measured on this machine: decode, prefill and memory of GGUF files, each from two others, or all.

    python bench/planning_here.py FILE.gguf ...

The law of this machine is refitted from the smallest and the largest of the other files, as by
`settle models fit --measure`.
"""

import argparse
from pathlib import Path

from settle.machine.described_machine import this_machine
from settle.plan.fit.here import PROMPT, WRITTEN, law_here, measure_file
from settle.plan.fit.speed import decode_rate, prefill_rate
from settle.plan.memory_model import need


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--all-others", action="store_true", help="refit from every other file")
    asked = parser.parse_args()
    files, all_others = asked.files, asked.all_others
    machine = this_machine()
    runs = sorted((measure_file(path) for path in files), key=lambda run: run.model.bytes or 0)
    print(f"{machine.label}: {machine.bandwidth / 1e9:.1f} GB/s, {machine.matrix_flops / 1e9:.0f} GFLOP/s")
    errors: dict[str, list[float]] = {"decode": [], "prefill": [], "memory": []}
    for run in runs:
        others = [other for other in runs if other is not run]
        law = law_here(others if all_others else [others[0], others[-1]], machine)
        shape, kind = run.model.shape, run.model.type or "f16"
        stored = run.model.matrices
        decode = decode_rate(shape, kind, machine, PROMPT + WRITTEN // 2, law=law, matrices=stored)
        prefill = prefill_rate(shape, kind, machine, law, PROMPT, stored)
        memory = need(shape, kind, machine, PROMPT + WRITTEN + 64, weights=run.model.bytes).total
        for name, predicted, actual in (
            ("decode", decode.value, run.decode),
            ("prefill", prefill.value, run.prefill),
            ("memory", memory, run.memory),
        ):  # fmt: skip
            errors[name].append(abs(predicted / actual - 1))
        said = f"decode {decode.value:7.1f} / {run.decode:7.1f}  prefill {prefill.value:8.0f} / {run.prefill:8.0f}"
        print(f"{run.model.name:24s} {kind:8s} {said}  MB {memory / 1e6:6.0f} / {run.memory / 1e6:6.0f}")
    for name, values in errors.items():
        print(f"{name}: mean error {sum(values) / len(values):.1%}, largest {max(values):.1%}")


if __name__ == "__main__":
    main()
