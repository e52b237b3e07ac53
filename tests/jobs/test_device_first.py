"""A device or a type that is not for this machine is refused before a file is read."""

from pathlib import Path

import pytest
import torch

from settle.cli import main


@pytest.mark.parametrize(
    ("asked", "words"),
    [(["--device", "cuda"], "cuda"), (["--dtype", "float16"], "float16")],
    ids=["device", "type"],
)
@pytest.mark.parametrize("command", [["train"], ["tune", "no-model-of-that-name"]], ids=["train", "tune"])
def test_it_is_refused_before_anything_is_read(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: list[str], asked: list[str], words: str
) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has an accelerator")
    (tmp_path / "text.txt").write_text("one line\n" * 20)
    assert main([*command, str(tmp_path / "text.txt"), *asked]) == 2
    told = capfd.readouterr().err
    assert words in told and "no-model-of-that-name" not in told and "reading" not in told
