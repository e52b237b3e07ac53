"""Events → a terminal: stdout carries the answer, stderr the talk."""

import json as jsonlib
import sys

from settle.base.events import Event


class Face:
    """Renders events. With `json`, the result is the last line of stdout."""

    def __init__(self, json: bool = False) -> None:
        self.json = json

    def __call__(self, event: Event) -> None:
        kind = event["kind"]
        if kind == "answer":
            sys.stdout.write(event["text"])
            sys.stdout.flush()
        elif kind == "result" and self.json:
            print(jsonlib.dumps(event["result"], default=str))
        else:
            print(" ".join(f"{k}={v}" for k, v in event.items() if k != "time")[:300], file=sys.stderr)

    def error(self, what: str, fix: str) -> None:
        """A person's mistake: what went wrong and how to mend it."""
        print(f"settle: {what}" + (f"\n  → {fix}" if fix else ""), file=sys.stderr)

    def close(self) -> None:
        sys.stderr.flush()
