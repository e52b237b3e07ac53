import sys
from pathlib import Path

import pytest

from settle.base.errors import UsageError
from settle.base.registry import part, part_names

CONTRACT = "from settle.base.registry import Part\nclass Animal(Part):\n    pass\n"


def family(name: str, groups: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A family whose folder holds a file, a group, and a package; the contract, with `groups`, is in its __init__."""
    import settle

    monkeypatch.setattr(settle, "__path__", [*settle.__path__, str(tmp_path)])
    for folder in ("", "birds", "shared"):
        (tmp_path / name / folder).mkdir(parents=True)
    written = f"from settle.{name} import Animal\nclass {{}}(Animal):\n    pass\n"
    (tmp_path / name / "__init__.py").write_text(CONTRACT + groups)
    (tmp_path / name / "cat.py").write_text(written.format("Cat"))
    (tmp_path / name / "_tools.py").write_text("")
    (tmp_path / name / "birds" / "__init__.py").write_text("")
    (tmp_path / name / "birds" / "owl.py").write_text(written.format("Owl"))
    (tmp_path / name / "shared" / "__init__.py").write_text(written.format("Shared"))
    for module in [m for m in sys.modules if m.startswith(f"settle.{name}")]:
        monkeypatch.delitem(sys.modules, module)
    return name


def test_groups_are_sub_folders_of_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    animals = family("grouped_animals", 'GROUPS = ("birds",)\n', monkeypatch, tmp_path)
    assert part_names(animals) == ("cat", "owl")
    assert part(animals, "owl").__module__ == "settle.grouped_animals.birds.owl"
    with pytest.raises(UsageError, match="there is no 'owls'") as caught:
        part(animals, "owls")
    assert caught.value.fix == "did you mean 'owl'?"


def test_without_groups_a_folder_is_a_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    animals = family("plain_animals", "", monkeypatch, tmp_path)
    assert part_names(animals) == ("birds", "cat", "shared")
    assert part(animals, "shared").__name__ == "Shared"
