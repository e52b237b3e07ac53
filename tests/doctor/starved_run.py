"""A run that ends for want of memory: `settle tune` in a process of its own, which may take no more than so much."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from settle.base.errors import ResourceError
from settle.base.out_of_memory import held_data, limit_data
from settle.base.run import Run


def starve(recipe: Mapping[str, object], run: Run, free: int) -> bool:
    """Run `recipe` in the folder of `run` with `free` bytes beside the model; return whether it ran out of them."""
    asked = json.dumps({"recipe": recipe, "folder": str(run.path), "free": free})
    done = subprocess.run([sys.executable, "-P", __file__], input=asked, stdout=subprocess.PIPE, text=True, check=True)
    return "starved" in done.stdout


def main() -> None:
    from settle.jobs.short_run import short_run
    from settle.jobs.training_stages import TrainingContext

    asked = json.load(sys.stdin)

    def limit(context: TrainingContext) -> None:
        limit_data(held_data() + asked["free"])

    try:
        short_run("tune", asked["recipe"], Run(Path(asked["folder"])), limit)
    except ResourceError:
        print("starved", flush=True)


if __name__ == "__main__":
    main()
