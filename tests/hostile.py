"""Files that lie: a sound file, changed. `metadata` changes what a GGUF file says; `mutated` changes any bytes."""

import json
import random
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from settle.base.errors import SettleError
from settle.formats.gguf import export_gguf, read_gguf, read_tensors
from settle.formats.peft import CONFIG, FILE, export_peft
from settle.formats.safetensors import export_safetensors
from settle.library.facts import read_facts
from settle.model.load_adapter import open_adapter
from settle.model.pretrained import Pretrained
from tests.trained import adapter, trained

KINDS = ("gguf", "safetensors", "config", "tokenizer", "peft")
_SIZES = (0, 1, 255, 65536, 1 << 24, (1 << 24) + 1, 1 << 26, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1)
# what takes the place of a value in JSON
_VALUES = (
    "0", "-1", "1e9", "1e400", "99999999999999999999", "true", "null", "1.5", '"a"', '""', "[]", "{}", "[1]", "NaN",
    '{"a": 1}', "4000000000", "2147483647", '"((((((a+)+)+)+)+)+b"', "[" * 2000 + "]" * 2000, '"\\ud800"', "-1e-300",
)  # fmt: skip


def sound(folder: Path) -> dict[str, Path]:
    """A sound file or folder of each kind of `KINDS`."""
    tiny = trained()
    gguf, hf, peft = folder / "model.gguf", folder / "hf", folder / "peft"
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, gguf, "f16")
    export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, hf, "f16")
    export_peft(tiny.part, adapter(tiny.part), peft)
    return {"gguf": gguf, "safetensors": hf, "config": hf, "tokenizer": hf, "peft": peft}


def with_metadata(source: Path, path: Path, changes: Mapping[str, object]) -> Path:
    """A copy of a GGUF file that says something else."""
    file = read_tensors(source)
    said = dict(file.metadata) | changes
    writer = GGUFWriter(path, str(said.pop("general.architecture")))
    for key, value in said.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            (writer.add_int64 if -(1 << 63) <= value < 1 << 63 else writer.add_uint64)(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, str(value))
    for name, tensor in file.tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor.load()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Mutant:
    """One kind of file, in a folder of its own, that is changed again and again and read each time."""

    def __init__(self, kind: str, source: Path, folder: Path, seed: int) -> None:
        self.kind, self._random = kind, random.Random(f"{kind} {seed}")
        self.path = folder / source.name
        if source.is_dir():
            shutil.copytree(source, self.path)
        else:
            shutil.copy(source, self.path)
        names = {
            "gguf": ("",), "safetensors": ("model.safetensors",), "config": ("config.json",),
            "tokenizer": ("tokenizer.json", "tokenizer_config.json"), "peft": (CONFIG, CONFIG, FILE),
        }[kind]  # fmt: skip
        self._files = [self.path / name if name else self.path for name in names]
        self._bytes = {file: file.read_bytes() for file in self._files}

    def change(self) -> None:
        """Writes another broken file in the place of the last one."""
        for file, raw in self._bytes.items():
            file.write_bytes(raw)
        file = self._random.choice(self._files)
        raw = self._bytes[file]
        if file.suffix == ".json":
            file.write_bytes(self._changed_json(raw))
        elif file.suffix == ".safetensors" and self._random.random() < 0.5:
            (length,) = struct.unpack_from("<Q", raw)
            header = self._changed_json(raw[8 : 8 + length])
            file.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
        else:
            file.write_bytes(self._changed_bytes(raw))

    def read(self) -> None:
        """As commands read such a file. Raises SettleError for what is not sound, and nothing else."""
        if self.kind == "peft":
            open_adapter(self.path)
            return
        if self.kind == "gguf":
            for tensor in read_gguf(self.path).tensors.values():
                tensor.load()
            read_facts(self.path)
        model = Pretrained.open(self.path)
        for name in list(model.stored)[:3]:
            model.read(name)
        text = "Hello <|end|> 12 é😀\n"
        model.tokenizer.decode(model.tokenizer.encode(text).tolist())
        model.tokenizer.encode(text, specials=True)

    def _changed_bytes(self, raw: bytes) -> bytes:
        chance, data = self._random, bytearray(raw)
        head = min(len(data), 40_000 if self.kind == "gguf" else 4_000)
        for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
            at, how = chance.randrange(max(1, min(head, len(data)))), chance.random()
            if how < 0.3:
                data[at : at + 1] = bytes([chance.randrange(256)])
            elif how < 0.4 and data:
                data[at] ^= 1 << chance.randrange(8)
            elif how < 0.6:
                data[at : at + 8] = struct.pack("<Q", chance.choice([*_SIZES, len(raw), len(raw) * 8]))
            elif how < 0.7:
                data[at : at + 4] = struct.pack("<I", chance.choice([0, 1, 7, 8, 9, 10, 13, 255, 1 << 31]))
            elif how < 0.8:
                del data[at : at + chance.randrange(1, 40)]
            elif how < 0.88:
                data[at:at] = chance.randbytes(chance.randrange(1, 40))
            elif how < 0.94:
                del data[chance.randrange(len(data) + 1) :]
            else:
                other = chance.randrange(max(1, min(head, len(data))))
                data[at : at + 60] = data[other : other + 60]
            if not data:
                data = bytearray(b"\0")
        return bytes(data)

    def _changed_json(self, raw: bytes) -> bytes:
        """Values, or keys, of a JSON text in the place of others; now and then its bytes."""
        chance = self._random
        if chance.random() < 0.15:
            return self._changed_bytes(raw)
        text = raw.decode("utf-8", "surrogateescape")
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            end = len(text) if chance.random() < 0.5 else 3000  # the head has the settings, the rest is a vocabulary
            places = list(_VALUE.finditer(text, 0, min(end, len(text))))
            if not places:
                break
            place = chance.choice(places)
            text = text[: place.start()] + chance.choice(_VALUES) + text[place.end() :]
        return text.encode("utf-8", "surrogateescape")


_VALUE = re.compile(r'"(?:[^"\\]|\\.)*"(?!\s*:)|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null|\[\]|\{\}')


def outcome(read: Callable[[], object]) -> str:
    """read, refused, or the crash."""
    try:
        read()
    except SettleError:
        return "refused"
    except Exception as e:  # noqa: BLE001  the crash is what is looked for
        return f"{type(e).__name__}: {str(e)[:200]}"
    return "read"


def write_json_to(path: Path, changes: object) -> None:
    """Changes of a JSON object, or other text in its place."""
    if isinstance(changes, str):
        path.write_text(changes)
    elif isinstance(changes, dict):
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))
    else:
        path.write_text(json.dumps(changes))
