"""Collections for tests: real folders, real stores, a real child that reads, and an embedder that takes no time."""

import os
import sys

import pytest

from tests.examples import forget_parts


@pytest.fixture(scope="module", autouse=True)
def joined(tmp_path_factory):
    """`hashed` is an embedder, joined as other people's packages join, here and in every process that is started."""
    made = tmp_path_factory.mktemp("parts")
    info = made / "settle_tests-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: settle-tests\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[settle.retrieve.index.embedders]\nhashed = tests.retrieve.hashed:Hashed\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(made))
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forget_parts()
        yield
    forget_parts()


@pytest.fixture
def folder(tmp_path):
    """An empty folder for documents."""
    made = tmp_path / "documents"
    made.mkdir()
    return made
