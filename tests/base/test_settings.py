from pathlib import Path

import pytest
from pydantic import Field

from settle.base.errors import DataError, UsageError
from settle.base.settings import Settings, read_recipe, resolve
from settle.doctor.read_transcript import read_transcript
from settle.infer.decision_session import read_questions


class Inner(Settings):
    rank: int = Field(8, description="rank")
    rate: float = Field(0.1, description="rate")


class Outer(Settings):
    steps: int | None = Field(None, description="steps")
    inner: Inner = Field(Inner(), description="a group")


def test_layers_and_origins():
    resolved = resolve(Outer, [("recipe", {"steps": 5, "inner": {"rank": 4}}), ("asked", {"inner": {"rank": 2}})])
    assert resolved.value == Outer(steps=5, inner=Inner(rank=2))
    assert resolved.origin == {"steps": "recipe", "inner.rank": "asked", "inner.rate": "default"}


@pytest.mark.parametrize(
    ("values", "near"),
    [
        ({"step": 3}, "steps"),
        ({"inner": {"rnak": 3}}, "inner.rank"),
        ({"rank": 3}, "inner.rank"),
        ({"x": {"rate": 1}}, "inner.rate"),
    ],
)
def test_unknown_key_names_the_nearest(values, near):
    with pytest.raises(UsageError, match="there is no setting") as e:
        resolve(Outer, [("recipe", values)])
    assert near in e.value.fix


def test_mistyped_value_says_key_and_origin():
    with pytest.raises(UsageError, match="recipe: inner.rank = 'many'"):
        resolve(Outer, [("recipe", {"inner": {"rank": "many"}})])


def test_group_given_a_plain_value():
    with pytest.raises(UsageError, match="inner"):
        resolve(Outer, [("recipe", {"inner": 3})])


def test_recipe_that_is_no_toml(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("steps = = 3")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_recipe(path)
    with pytest.raises(UsageError, match="no recipe"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no file without an end")
def test_what_has_no_end_is_not_read_to_it(tmp_path):
    """As a recipe, a list of questions and a transcript."""
    zeros = Path("/dev/zero")
    with pytest.raises(UsageError, match="larger than 1 MB"):
        read_recipe(zeros)
    with pytest.raises(UsageError, match="larger than 1 MB"):
        read_questions(zeros)
    with pytest.raises(DataError, match="larger than 64 MB"):
        read_transcript(zeros)
    with pytest.raises(UsageError, match="Is a directory"):
        read_recipe(tmp_path)
