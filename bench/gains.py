"""Does a doubling save what the plan said beforehand? Twice the time, twice the text, a model twice as large.

    python bench/gains.py TEXT... [--tokens 600k] [--size 200k]

The last 10 % of each text judge all exports here. Of the rest every other stretch of 10,000 characters is half of the
text. A base run on the half makes the forecast; then each doubling is done, two runs at a time with one thread
each. A line for each says what was forecast, with its 80 % interval, and what came, as shares of the base's bits per
byte.
"""

import argparse
import json
import tempfile
from pathlib import Path

from busy import HERE
from corpora import STRETCH
from equal_time import begun, figures
from nanogpt import halves

from settle.base.amounts import count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--keep", type=Path, help="where the homes of all runs stay")
    parser.add_argument("--tokens", default="600k")
    parser.add_argument("--size", default="200k")
    asked = parser.parse_args()
    size, tokens = count(asked.size), count(asked.tokens)
    with tempfile.TemporaryDirectory() as folder:
        for text in asked.texts:
            given, judged = halves(text)
            half = "".join(given[at : at + STRETCH] for at in range(0, len(given), 2 * STRETCH))
            texts = {name: Path(folder, f"{name}.txt") for name in ("half", "whole", "judged")}
            for path, content in zip(texts.values(), (half, given, judged), strict=True):
                path.write_text(content, encoding="utf-8", newline="")
            runs = {
                "base": (texts["half"], tokens, size),
                "time": (texts["half"], 2 * tokens, size),
                "text": (texts["whole"], tokens, size),
                "model": (texts["half"], tokens, 2 * size),
            }
            homes = {name: Path(asked.keep or folder, f"{text.stem}-{name}") for name in runs}
            for pair in (("base", "time"), ("text", "model")):
                processes = []
                for name in pair:
                    path, budget, parameters = runs[name]
                    settings = ["--tokens", str(budget), "--size", str(parameters)]
                    processes.append(begun(HERE, path, homes[name], 0, settings))
                codes = [process.wait() for process in processes]
                if any(codes):
                    raise SystemExit(f"a run of {text} failed")
            reached = {
                name: float(str(figures(home, texts["judged"])["bits_per_byte"])) for name, home in homes.items()
            }
            (run,) = (homes["base"] / "runs").iterdir()
            for what, said in json.loads((run / "forecast.json").read_text())["gains"]:
                came = 1 - reached[what] / reached["base"]
                inside = said["low"] <= came <= said["high"]
                row = {"text": text.stem, "twice": what, "forecast": said, "came": round(came, 4), "inside": inside}
                print(json.dumps(row | {"base": reached["base"]}), flush=True)


if __name__ == "__main__":
    main()
