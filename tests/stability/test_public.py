"""No public name comes or goes unseen: docs/stability.md says what is promised of them."""

import re

import pytest

from tests.stability.public import COMMAND, ROOT, SNAPSHOT, names, topmost, unmentioned

CHANGELOG = """# Changelog

## 2.0.0

### Added
- `settle train --faster` and `settle bake`; `warmth` in `result.json`.

### Changed
- `--to pdf` is gone, and nothing else: train, seed.

### Renamed; the former name still works
| `--rates.lr` | `--optimizer.lr` |

### Removed
- The command `bench`.

## 1.0.0

### Removed
- `settle chat --old`
"""


def test_the_snapshot_is_what_there_is():
    kept, present = set(SNAPSHOT.read_text(encoding="utf-8").splitlines()), set(names())
    changed = [f"gone: {name}" for name in sorted(kept - present)] + [f"new: {name}" for name in sorted(present - kept)]
    help_text = f"add a line to CHANGELOG.md, then run `{COMMAND}`, which rewrites {SNAPSHOT.name}:\n"
    assert not changed, help_text + "\n".join(changed)


def test_the_changelog_names_what_changed_since_the_snapshot():
    kept, changelog = SNAPSHOT.read_text(encoding="utf-8").splitlines(), ROOT / "CHANGELOG.md"
    assert unmentioned(set(kept), set(names()), changelog.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "name",
    [
        "settle train --rates.lr",
        "settle runs --to pdf",
        "settle bench",
    ],
)
def test_a_name_that_is_gone_may_be_gone_where_the_changelog_says_so(name):
    assert unmentioned({name, "settle train"}, {"settle train"}, CHANGELOG) == []


@pytest.mark.parametrize(
    "name",
    [
        "settle chat --old",  # in an older version
        "settle train --faster",  # under Added
        "settle train --rates",
        "settle train --optimizer",
        "settle runs --to svg",
        "settle train",  # a word there, and no code
        "result.json warmth",
        "FinishedRun.generate(seed)",
        "exit code 3",
    ],
)
def test_a_planted_removal_is_found(name):
    (wrong,) = unmentioned({name, "settle eval"}, {"settle eval"}, CHANGELOG)
    assert wrong == f"gone: {name} (name it under Changed, Renamed, Removed)"


def test_what_belongs_to_a_name_goes_and_comes_with_it():
    gone = {"settle bench", "settle bench --tokens", "settle bench --to", "settle bench --to svg"}
    assert unmentioned(gone, set(), CHANGELOG) == []
    new = {"settle bake", "settle bake --heat", "settle train --faster", "result.json warmth"}
    assert unmentioned(set(), new, CHANGELOG) == []
    assert unmentioned({"settle bench"}, {"settle bench", "settle bench --more"}, CHANGELOG) == [
        "new: settle bench --more"
    ]


def test_every_kind_of_name_is_listed():
    """By one name each that scripts are known to use: an empty walk would compare nothing."""
    wanted = """
    settle train --optimizer.lr|settle train --optimizer muon|settle train --data.mask email|settle tune --quantize nf4
    settle plan pay-off|settle runs compare|settle models fit|settle index PATHS …|settle ask --raw
    option of every command --json|exit code 130|environment SETTLE_HOME|recipe version|run folder result.json
    events.jsonl eval bits_per_byte|result.json best.loss|verdict.json rows.families|catalogue known.name
    settle.train|settle.chat(top_p)|FinishedRun.generate(max_tokens)|FinishedRun.verdict|SettleError.fix|Report.result
    """
    listed = {name.strip() for name in re.split(r"[|\n]", wanted) if name.strip()}
    assert len(listed) > 20 and listed <= set(names()), listed - set(names())


def test_the_newest_version_has_sections():
    sections = topmost((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert {"Added", "Changed"} & sections.keys()
