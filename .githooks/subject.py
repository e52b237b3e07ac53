"""Check that commit subjects are imperative and at most 72 characters long.

python3 .githooks/subject.py --message FILE   the commit that is being written (the hook that `make install` sets up)
python3 .githooks/subject.py --branch         every commit that the branch adds to its upstream (`make lint`)
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_CHARACTERS = 72
BY_GIT = re.compile("Merge (branch|remote-tracking branch|pull request|tag|commit) |Revert |(fixup|squash|amend)! ")
NO_VERBS = {"a", "an", "the", "this", "that", "it", "its", "of", "in", "on", "for", "what", "where", "when", "who"}


def problem(subject: str) -> str | None:
    """Return what is wrong with a subject."""
    if BY_GIT.match(subject):
        return None
    if len(subject) > MOST_CHARACTERS:
        return f"{len(subject)} characters; at most {MOST_CHARACTERS}"
    if not re.match(r"[A-Z][\w'-]*(\s|$)", subject) or subject.endswith("."):
        return "begin with a capital letter and a verb, and end without a period"
    if subject.split()[0].lower() in NO_VERBS or not _is_imperative(subject):
        return 'begin with a verb in the imperative: "Read", not "Reads", "Reading" or "The reader"'
    return None


def _is_imperative(subject: str) -> bool:
    """Ask ruff's rule for docstrings; a machine without ruff is not asked."""
    ruff = ROOT / ".venv" / ("Scripts" if sys.platform == "win32" else "bin") / "ruff"
    command = [str(ruff), "check", "--isolated", "--quiet", "--select", "D401", "--stdin-filename", "subject.py", "-"]
    code = f"def subject():\n    {(subject.split()[0] + ' it.')!r}\n"
    try:
        return subprocess.run(command, input=code, text=True, capture_output=True).returncode == 0
    except OSError:
        return True


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []


def main() -> int:
    """Return 1 after printing the subjects that break the rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--message", type=Path)
    what.add_argument("--branch", action="store_true")
    arguments = parser.parse_args()
    if arguments.message:
        subjects = arguments.message.read_text(encoding="utf-8").splitlines()[:1]
    else:
        subjects = _git("log", "--format=%s", "@{upstream}..HEAD")
    found = [(subject, why) for subject in subjects if (why := problem(subject))]
    for subject, why in found:
        print(f"commit subject: {subject}\n    {why}", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
