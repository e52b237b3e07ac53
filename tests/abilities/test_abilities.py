"""Each ability of each family is what the table says: it works, or it is refused by name with the reason."""

import pytest

from settle.model.families import families
from tests.abilities.prove import ABILITIES, prove
from tests.abilities.subject import Subject, Text
from tests.abilities.table import read_table
from tests.model.architectures.cases import further

TABLE = read_table()
LONG = {("gemma3n_text", "distill")}  # its loss bends so much that each of 131 tensors is differenced by itself
DECIDE = ("qwen3_5_text", "lfm2_moe", "olmo")  # recurrence, experts, norms without weights: others are like them


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """Each family's, made when it is first asked for; with a home of their own."""
    folder, made = tmp_path_factory.mktemp("abilities"), dict[str, Subject]()
    text = Text.make(folder)

    def subject(family):
        if family not in made:
            (folder / family).mkdir()
            made[family] = Subject(family, text, folder / family)
        return made[family]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(folder / "home"))
        (folder / "home").mkdir()
        yield subject


def test_the_table_has_every_family_and_ability():
    known = families()
    missing = [family for family in known if TABLE.get(family, {}).keys() != ABILITIES.keys()]
    make = "python -m tests.abilities FAMILY, then python bench/family_tables.py"
    assert not missing and sorted(TABLE) == sorted(known), f"{missing or set(TABLE) - set(known)}: run {make}"


def cells():
    """All, of which each run tries a third, of every family and ability; a sixth of families that share layers."""
    for column, family in enumerate(TABLE):
        for row, ability in enumerate(TABLE[family]):
            is_tried = (column + row) % (6 if further(family) else 3) == 0 and (family, ability) not in LONG
            is_tried = family in DECIDE if ability == "decide" else is_tried
            marks = () if is_tried else pytest.mark.exhaustive
            yield pytest.param(family, ability, id=f"{family}-{ability}", marks=marks)


@pytest.mark.parametrize(("family", "ability"), list(cells()))
def test_an_ability_is_what_the_table_says(family, ability, subjects):
    assert prove(subjects(family), ability) == TABLE[family][ability]
