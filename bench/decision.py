"""Decision models on tables of `decision_tables.py`: 200 rows to train on, rows of their own to judge.

    python bench/decision.py tables smollm2 sections speech                      # development
    python bench/decision.py tables smollm2 functions feeling manuals fortunes   # judgement, once
    python bench/decision.py tables smollm2 components reviews severity          # judgement of what changed since, once
    python bench/decision.py tables smollm2 keys aws                             # development, against naive Bayes
    python bench/decision.py tables smollm2 help pages faq archive library numbers   # judgement of that, once
    python bench/decision.py orders speech sections                              # runs: asked by settle in other orders

Each table is one `settle tune --objective decision` with default settings; a line for each shows accuracy beside the
majority class and the untrained model, calibration, what another order of the options changes, and minutes beside the
forecast. `--json FILE` keeps the results. "orders" in a line is the model's own weakness: what changes when it is asked
past settle in another order of the options. `orders` asks the exported file as `settle decide` does.
"""

import argparse
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import settle
from settle.base.errors import SettleError
from settle.base.run import Run
from settle.data.corpus import corpus_folder
from settle.data.decisions.corpus import open_decisions
from settle.infer.decider import Decider

BARS = {"gain": 0.25, "ece": 0.05, "orders": 0.02, "minutes": 30.0}


def measure(folder: Path, model: str, more: dict[str, object]) -> dict[str, object]:
    """One table's figures."""
    train, test = (str(next(folder.glob(f"{side}.*"))) for side in ("train", "test"))
    run = settle.tune(model, train, objective="decision", name=folder.name, rows={"held_out_from": test}, **more)
    result = run.result
    decision, actual = result["decision"], result["actual"]
    assert isinstance(decision, dict) and isinstance(actual, dict)
    tests, report = result["comparison"]["tests"], decision["report"]  # type: ignore[index]
    forecast = result["forecast"]["time"]  # type: ignore[index]
    return {
        "table": folder.name,
        "rows": report["rows"],
        "verdict": result["verdict"],
        "accuracy": report["accuracy"],
        "zero_shot": tests["zero-shot"],
        "majority": tests["majority class"],
        "words": tests["naive Bayes on the words"],
        "ece": report["ece"],
        "ece_if_calibrated": report["ece_if_calibrated"],
        "brier": report["brier"],
        "baselines": decision["baselines"],
        "orders": decision["order_changes"],
        "temperatures": decision["temperatures"],
        "answered": report["answered"],
        "minutes": actual["time"] / 60,
        "forecast_minutes": [forecast[end] / 60 for end in ("value", "low", "high")],
    }


def line(row: dict) -> str:
    """Return a line with the figures of one table against the bars."""
    zero, ece, orders, minutes = row["zero_shot"], row["ece"], row["orders"], row["forecast_minutes"]
    met = {
        "gain": zero["difference"] >= BARS["gain"],
        "naive Bayes": row["words"]["difference"] > 0,
        "ece": ece["value"] <= BARS["ece"],
        "orders": orders is None or orders["value"] <= BARS["orders"],
        "minutes": row["minutes"] <= BARS["minutes"] and minutes[1] <= row["minutes"] <= minutes[2],
    }
    missed = ", ".join(name for name, is_met in met.items() if not is_met)
    return (
        f"{row['table']:<10} {row['rows']:>4} rows  right {row['accuracy']['value']:.1%}  zero-shot {zero['base']:.1%} "
        f"({zero['difference']:+.1%}, {zero['low']:+.1%} to {zero['high']:+.1%})  "
        f"majority {row['majority']['base']:.1%}  naive Bayes {row['words']['base']:.1%} "
        f"({row['words']['difference']:+.1%}, {row['words']['low']:+.1%} to {row['words']['high']:+.1%})  "
        f"ECE {ece['value']:.3f} ({ece['low']:.3f} to {ece['high']:.3f}; calibrated {row['ece_if_calibrated']:.3f})  "
        f"Brier {row['brier']:.3f}  orders {orders['value'] if orders else 0:.1%}  {row['minutes']:.1f} min "
        f"(forecast {minutes[0]:.1f}, {minutes[1]:.1f} to {minutes[2]:.1f})  {'missed: ' + missed if missed else 'met'}"
    )


def asked_in_other_orders(name: str, rows: int = 60) -> str:
    """How many of settle's answers change when the options of a choice come in another order."""
    run = Run.find(name)
    corpus = open_decisions(corpus_folder(str((run.read("plan.json") or {})["corpus"])))
    dice, changed, largest = random.Random(0), 0, 0.0
    choices = [row for row in corpus.rows("held_out") if row.question.type == "choice"][:rows]
    with Decider(next(run.out.glob("*.gguf")), slots=1) as decider:
        for row in choices:
            options = list(row.question.options)
            dice.shuffle(options)
            other = replace(row.question, options=tuple(options))
            answers = [decider.decide(row.state, [question])[0] for question in (row.question, other)]
            first, second = (dict(zip(a.question.keys, a.probabilities, strict=True)) for a in answers)
            changed += answers[0].key != answers[1].key
            largest = max(largest, *(abs(first[key] - second[key]) for key in first))
    return f"{name:<10} {changed} of {len(choices)} answers changed; probabilities by {largest:.4f} at most"


def main() -> None:
    if sys.argv[1:2] == ["orders"]:
        print("\n".join(asked_in_other_orders(name) for name in sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("model")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--set", action="append", default=[], help="a setting of the run, such as adapter=full")
    asked = parser.parse_args()
    for name in asked.names:
        if not all(any((asked.tables / name).glob(f"{side}.*")) for side in ("train", "test")):
            parser.error(f"{asked.tables / name} has no train.* and test.*: make it with decision_tables.py")
    settings = dict(setting.split("=", 1) for setting in asked.set)
    rows = []
    for name in asked.names:
        rows.append(measure(asked.tables / name, asked.model, settings))
        print(line(rows[-1]), flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    try:
        main()
    except SettleError as e:  # a missing model or run
        sys.exit(f"error: {e}")
