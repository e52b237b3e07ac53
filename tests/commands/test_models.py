"""`settle models`, over a store with sound and broken files."""

import hashlib
import json
import subprocess
import sys

import pytest

pytest.importorskip("aiohttp", reason="the extra `serve` is not installed")

from settle.cli import main
from settle.library.store import StoredModel, add_model
from settle.machine.measurement_cache import key, path_of
from settle.server.models.model_list import tools_of
from tests.server.conftest import add_adapter, fill_store

NATIVE = """\
{%- if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}
{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}
{%- for call in m.tool_calls or [] %}<call>{{ call.function.name }}</call>{% endfor %}{% endfor %}"""
TEXTUAL = NATIVE.replace("call.function.name }}", "call.function.name + call.function.arguments }}")
PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
STRICT = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"


@pytest.fixture
def stocked(home):
    """tiny, plain, an adapter over tiny, a broken file, one that is gone, and one in Hugging Face's layout."""
    base = fill_store(home)
    add_adapter(home, "notes", base)
    for name, data in (("broken", base.read_bytes()[:4000]), ("gone", None)):
        folder = home / "models" / name
        folder.mkdir()
        if data is not None:
            (folder / "x.gguf").write_bytes(data)
        add_model(StoredModel(name, "gguf", folder / "x.gguf", "cd" * 32, f"test:{name}"))
    folder = home / "models" / "hf"
    (folder / "files").mkdir(parents=True)
    add_model(StoredModel("hf", "safetensors", folder / "files", "ef" * 32, "hub:x/hf", "mit"))
    return base


def models(capsys, *args):
    code = main(["models", *args, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_none_yet(home, capsys):
    assert main(["models"]) == 0
    assert "settle pull" in capsys.readouterr().err


def test_a_pulled_model_is_removed_but_not_from_under_an_adapter(stocked, home, capsys):
    code, removed, _ = models(capsys, "remove", "plain")
    assert code == 0 and removed["removed"] == "plain" and removed["bytes"] > 1000
    assert not (home / "models" / "plain").exists()
    code, _, err = models(capsys, "remove", "tiny")
    assert code == 2 and "notes cannot run without tiny" in err and (home / "models" / "tiny").exists()
    assert models(capsys, "remove", "tiny", "--yes")[0] == 0 and not (home / "models" / "tiny").exists()
    for name in ("plain", "notes", "../runs", ""):
        assert models(capsys, "remove", name)[0] == 2
    assert "settle runs remove notes" in models(capsys, "remove", "notes")[2]
    assert (home / "runs").exists()


def test_list(stocked, capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "broken", "gone", "hf", "plain", "tiny", "tiny:notes"]
    assert "broken: " in lines[1] and "broken: " in lines[2] and "first used" in lines[3]
    assert "adapter over tiny" in lines[6]
    told = {model["name"]: model for model in models(capsys)[1]["models"]}
    tiny = told["tiny"]
    assert tiny["bytes"] == stocked.stat().st_size and tiny["quantization"] == "F32" and tiny["context"] == 512
    assert tiny["tools"] == "helped" and tiny["template"] is True and tiny["fits"] == "yes"
    assert tiny["tokens_per_second"] is None and tiny["parameters"] > 10_000
    assert told["plain"]["tools"] == "no" and told["plain"]["template"] is False
    assert told["tiny:notes"]["base"] == "tiny" and told["broken"]["broken"] and told["hf"]["unconverted"]
    assert [m["name"] for m in models(capsys, "plain", "notes")[1]["models"]] == ["plain", "tiny:notes"]


def test_measured_once_for_a_file(stocked, capsys):
    code, told, err = models(capsys, "--measure", "tiny")
    speed = told["models"][0]["tokens_per_second"]
    assert code == 0 and speed["prompt"] > 0 and speed["written"] > 0, err
    from settle.machine.cores import cores

    kept = path_of(key("cpu", cores().usable))
    assert main(["models"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert "read," in listed[5] and "read," in listed[6] and "read," not in listed[4]  # adapters run on the same file
    told = json.loads(kept.read_text())
    for value in told["measured"].values():
        value |= {"value": {"prompt": 1e6, "written": 5e5}, "busy": False}
    kept.write_text(json.dumps(told))
    assert models(capsys, "--measure", "tiny")[1]["models"][0]["tokens_per_second"]["prompt"] == 1e6
    stocked.write_bytes(stocked.read_bytes())  # another file from now on
    assert models(capsys, "tiny")[1]["models"][0]["tokens_per_second"] is None


def test_what_cannot_be_measured_is_told(stocked, capsys):
    code, told, err = models(capsys, "--measure", "broken", "gone")
    assert code == 1 and [f["name"] for f in told["failed"]] == ["broken", "gone"] and "not measured" in err


def test_show(stocked, capsys):
    assert main(["models", "show", "tiny"]) == 0
    out = capsys.readouterr().out
    assert str(stocked) in out and "test:tiny" in out and "tiny:notes" in out and "helped" in out
    told = models(capsys, "show", "tiny")[1]["model"]
    assert told["template"] in out and told["adapters"] == ["tiny:notes"]
    assert told["sha256"] == hashlib.sha256(stocked.read_bytes()).hexdigest()
    adapter = models(capsys, "show", "notes")[1]["model"]
    assert adapter["name"] == "tiny:notes" and adapter["sha256"] != told["sha256"] and adapter["adapters"] == []
    assert models(capsys, "show", "hf")[1]["model"]["license"] == "mit"
    assert models(capsys, "show", "broken")[1]["model"]["broken"]
    code, _, err = models(capsys, "show", "nobody")
    assert code == 2 and "known:" in err and "tiny" in err
    assert models(capsys, "show")[0] == 2


def test_tools():
    assert [tools_of(t) for t in (NATIVE, TEXTUAL)] == ["native"] * 2
    assert [tools_of(t) for t in (PLAIN, STRICT, "{% if", None)] == [*["helped"] * 3, "no"]


@pytest.mark.parametrize("args", [["models"], ["models", "show", "tiny"], ["connect"]])
def test_no_torch(stocked, args):
    code = f"import sys; from settle.cli import main; code = main({args!r}); sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
