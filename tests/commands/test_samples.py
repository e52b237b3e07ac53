"""What a person sees of a run besides its numbers: samples of what the model writes, and what to do next."""

import sysconfig
from pathlib import Path

from settle.base.event_log import read_events
from settle.base.run import Run
from settle.cli import main


def test_samples_are_shown_at_the_start_in_the_middle_and_at_the_end(home: Path, tmp_path: Path, capfd):
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("argparse", "ast", "calendar", "cmd", "csv", "difflib", "inspect"):
        (tmp_path / f"{name}.py").write_text((library / f"{name}.py").read_text())
    asked = ["--size", "60k", "--steps", "12", "--name", "a", "--threads", "1", "--sample", "def", "-v"]
    assert main(["train", str(tmp_path), *asked]) == 0
    events = list(read_events(Run.find("a").events))
    samples = [event for event in events if event.kind == "sample"]
    assert [(s.moment, s.prompt) for s in samples] == [("start", "def"), ("middle", "def"), ("end", "def")]
    assert samples[0].step == 0 and samples[1].step == 6 and all(s.text for s in samples)
    phases = [event.phase for event in events if event.kind == "phase"]
    assert phases[:2] == ["earlier_session", "data"] and phases[-5:] == ["proof", "loop", "judge", "export", "result"]
    talk = capfd.readouterr().err
    assert "middle, step 6: def" in talk and "Next: `settle chat a def`" in talk and "planned: " in talk
