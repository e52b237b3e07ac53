"""LM Studio finds a model by where it lies."""

from settle.formats import ModelContents
from settle.formats.gguf import read_gguf
from settle.formats.lmstudio import LmStudio


def test_the_folder_lm_studio_looks_in(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    form = LmStudio(dtype="q8_0")
    assert form.default_path("notes").parts == ("lmstudio-models", "settle", "notes")
    models = tmp_path / ".lmstudio" / "models"
    models.mkdir(parents=True)
    assert form.default_path("notes") == models / "settle" / "notes"
    moved = tmp_path / "elsewhere"
    (moved / "models").mkdir(parents=True)
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{moved}\n")
    place = form.default_path("notes")
    assert place == moved / "models" / "settle" / "notes"
    form.write(place, ModelContents(tiny.part, tiny.weights, tiny.tokenizer, {"name": "notes"}))
    assert [p.name for p in place.iterdir()] == ["notes-Q8_0.gguf"]
    assert read_gguf(form.gguf(place)).metadata["general.name"] == "notes"
