"""Collections for tests: real folders, real stores, a real child that reads, and an embedder that takes no time."""

import pytest

from tests import examples


@pytest.fixture(scope="module", autouse=True)
def joined(tmp_path_factory):
    """`hashed` is an embedder, joined as other people's packages join, here and in every process that is started."""
    points = "[settle.retrieve.index.embedders]\nhashed = tests.retrieve.hashed:Hashed\n"
    with examples.joined(tmp_path_factory.mktemp("parts"), points):
        yield


@pytest.fixture
def folder(tmp_path):
    """An empty folder for documents."""
    made = tmp_path / "documents"
    made.mkdir()
    return made
