"""What Ollama's own importer makes of settle's exports: its converter on folders, its parser, its templates.

    python bench/ollama_import.py CHECKOUT TOKENIZER.gguf [--go GO] [--families llama gemma3_text qwen2]

CHECKOUT: source of github.com/ollama/ollama with the modules that it needs, as `go build` finds them (GOFLAGS,
GOPATH). A program beside this file is built into it without changing it. Each family in its tiny shape, with random
weights and the tokenizer of a GGUF file, is exported as safetensors, converted by Ollama, and read back: every
tensor and the ids of texts must be those of the model. The Modelfile of an Ollama export is parsed by Ollama, and its
template must render conversations as the model's own template does. Prints one JSON line a family.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from settle.base.chat_template import ChatTemplate
from settle.evaluate.gate.behaviour import ADVERSARIAL
from settle.formats import ModelContents
from settle.formats.gguf import read_gguf
from settle.formats.ollama import PROBES, Ollama
from settle.formats.safetensors import export_safetensors
from settle.model.families import family_named
from settle.model.pretrained import Pretrained

PROGRAM = Path(__file__).with_suffix(".go")
FAMILIES = ["llama", "gemma3_text", "qwen2"]


def built(checkout: Path, go: str, out: Path) -> Path:
    """Build the program as a package of the checkout, which is not written to."""
    program = out / "importer"
    overlay = out / "overlay.json"
    overlay.write_text(json.dumps({"Replace": {str(checkout / "settle_import/main.go"): str(PROGRAM.resolve())}}))
    command = [go, "build", "-overlay", str(overlay), "-o", str(program), "./settle_import"]
    subprocess.run(command, cwd=checkout, check=True)
    return program


def asked_of(program: Path, *arguments: object, stdin: str = "") -> str:
    done = subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


def conversion(program: Path, part, weights, tokenizer, folder: Path) -> dict[str, object]:
    """Compare what Ollama converts from a folder with the model."""
    hf, gguf = export_safetensors(part, weights, tokenizer, folder / "hf"), folder / "converted.gguf"
    (folder / "hf" / "Modelfile").write_text("FROM .\n")
    files = json.loads(asked_of(program, "parse", folder / "hf" / "Modelfile"))["files"]
    asked_of(program, "convert", hf, gguf)
    read = Pretrained.open(gguf)
    differ = [
        name
        for name, wanted in weights.items()
        if not torch.equal(
            read.read(name), wanted if read.stored[name].tensor.dtype == "F32" else wanted.half().float()
        )
    ]
    ids = sum(list(read.tokenizer.encode(t)) == list(tokenizer.encode(t)) for t in ADVERSARIAL)
    keys = read_gguf(gguf).metadata
    return {
        "files": sorted(Path(file).name for file in files),
        "read_as": keys["general.architecture"],
        "tensors": f"{len(weights) - len(differ)} of {len(weights)}",
        "differ": differ[:3],
        "same_settings": read.part.options() == part.options(),
        "ids": f"{ids} of {len(ADVERSARIAL)}",
    }


def modelfile(program: Path, part, weights, tokenizer, folder: Path) -> dict[str, object]:
    """Compare what Ollama reads of an export's Modelfile with the model's template."""
    place = Ollama(dtype="f16").write(folder / "ollama", ModelContents(part, weights, tokenizer, {"name": "notes"}))
    request = json.loads(asked_of(program, "parse", place / "Modelfile"))
    found = {"files": [Path(f).name for f in request["files"]], "parameters": request["parameters"]}
    if request.get("template"):
        own = ChatTemplate(
            tokenizer.chat_template, *(_token(tokenizer, i) for i in (tokenizer.bos_id, tokenizer.eos_id))
        )
        system = request.get("system")
        talks = [talk if not system or talk[0]["role"] == "system" else [{"role": "system", "content": system}, *talk]
                 for talk in PROBES]  # fmt: skip
        texts = json.loads(asked_of(program, "render", place / "Modelfile", stdin=json.dumps(talks)))
        wanted = [own.render(talk, add_generation_prompt=True) for talk in PROBES]
        if tokenizer.add_bos:
            wanted = [text.removeprefix(_token(tokenizer, tokenizer.bos_id)) for text in wanted]
        found["rendered"] = f"{sum(a == b for a, b in zip(texts, wanted, strict=True))} of {len(PROBES)}"
    return found


def _token(tokenizer, number: int | None) -> str:
    return "" if number is None else tokenizer.tokens[number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--go", default="go")
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    asked = parser.parse_args()
    tokenizer = Pretrained.open(asked.tokenizer).tokenizer
    with tempfile.TemporaryDirectory() as scratch:
        program = built(asked.checkout.resolve(), asked.go, Path(scratch))
        for family in asked.families:
            folder = Path(scratch, family)
            folder.mkdir()
            tiny = family_named(family).TINY
            part = tiny.with_fields(vocab_size=tokenizer.vocab_size)
            random = np.random.default_rng(0)
            weights = {
                name: torch.from_numpy(random.standard_normal(p.shape).astype(np.float32)).half().float()
                for name, p in part.build(0).named_parameters()
            }
            result: dict[str, object] = {"family": family}
            for name, compare in (("conversion", conversion), ("modelfile", modelfile)):
                try:
                    result[name] = compare(program, part, weights, tokenizer, folder)
                except Exception as e:  # noqa: BLE001  an importer's refusal is a figure
                    result[name] = f"{type(e).__name__}: {e}"
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
