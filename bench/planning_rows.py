"""Published rows of inference speed and memory, each with the machine and the model that it names: for planning.py.

A row counts where the machine is in hardware.toml, the model in the catalogue (or its file's size is told), the type of
its weights is told, and nothing but the plain model is measured (no draft, no multi-token prediction). Rows that would
read more than the memory delivers are set aside as contradictions, and counted.
"""

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from settle.base.errors import SettleError
from settle.library.catalogue import find_known
from settle.library.model_shape import ModelShape
from settle.machine import Machine, described
from settle.plan.fit.weight_types import read_bytes

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """group: the chip, which is held out as a whole. build: of the runtime, whose costs a layer differ."""

    table: str
    group: str
    machine: Machine
    build: str
    model: str
    shape: ModelShape
    type: str
    decode: float | None = None
    prefill: float | None = None
    prompt: int = 512
    memory_gib: float | None = None
    context: int = 512
    fits: bool | None = None
    offloads: bool = False


@dataclass
class Rows:
    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, row: Row) -> None:
        read = read_bytes(row.shape, row.type) * (0.0 if row.offloads else row.decode or 0.0)
        if read > 1.02 * row.machine.bandwidth * row.machine.count:
            self.left_out[f"{row.table}: reads more than the memory delivers"] += 1
            return
        self.rows.append(row)


def require_tables(folder: Path) -> None:
    """Exit with status 2 where a folder has no tables: the published measurements are not part of the repository."""
    if not any(folder.glob("*.csv")):
        print(
            f"{folder} has no tables of published measurements; they are not part of this repository", file=sys.stderr
        )
        raise SystemExit(2)


def read_rows(folder: Path) -> Rows:
    """Every row of the folder's tables that counts."""
    rows = Rows()
    if (path := folder / "inference_speed.yaml").is_file():
        for raw in yaml.safe_load(path.read_text())["rows"]:
            _speed_row(raw, rows)
    for name, reader in (
        ("inference_llamacpp_scoreboards.csv", _scoreboard_rows),
        ("inference_llmfit_community.csv", _community_rows),
        ("inference_llmfit_cache.csv", _cache_rows),
        ("inference_mac_llm_bench.csv", _mac_rows),
    ):
        if (path := folder / name).is_file():
            with path.open() as file:
                for row in reader(list(csv.DictReader(file)), rows):
                    rows.add(row)
    return rows


def machine_of(text: str, rows: Rows, table: str, default_gib: float | None = None) -> Machine | None:
    """Return the machine that a table's words name, or None."""
    text = re.sub(r"\bb\d{4}\b|\(.*?unspecified\)|\bNot sure.*$", "", text.replace("Al Max", "AI Max"))
    found = re.search(r"\((?:Nvidia|AMD|Intel)\s+(.*?)\)", text)  # a board with a card: the card computes
    text = found[1] if found else text
    for words in (text, f"{text} {default_gib:.0f}gb" if default_gib else text):
        try:
            return described(words)
        except SettleError:
            continue
    rows.left_out[f"{table}: unknown machine"] += 1
    return None


def shape_of(name: str, rows: Rows, table: str) -> tuple[str, ModelShape] | None:
    known = find_known(name)
    if known is None:
        rows.left_out[f"{table}: unknown model"] += 1
        return None
    return known.name, known.shape


_NAMES = {
    "llama-7b": "llama-2-7b", "llama-2-7b": "llama-2-7b", "7b llama 2": "llama-2-7b", "13b llama 2": "llama-2-13b",
    "llama-3-8b": "llama-3.1-8b", "llama-3-70b": "llama-3.1-70b", "8b": "llama-3.1-8b",
    "llama 3.2:3b": "llama-3.2-3b", "llama 3.1:70b": "llama-3.1-70b", "llama 3.1:405b": "llama-3.1-405b",
    "deepseek r1 14b": "deepseek-r1-distill-qwen-14b", "deepseek r1 671b": "deepseek-r1", "gpt-oss 20b": "gpt-oss-20b",
    "1.3b phi-1.5": "phi-1_5", "34b codellama": "codellama-34b", "40b falcon": "falcon-40b",
    "3b stablelm alpha": "stablelm-3b-4e1t", "70b llama 2": "llama-3.1-70b",
}  # fmt: skip
_TYPES = (
    (r"mxfp4", "mxfp4"), (r"nvfp4", "nvfp4"), (r"nf4-dq", "nf4-dq"), (r"nf4", "nf4"), (r"awq", "awq"),
    (r"ud-q4_k_xl|q4_k_xl", "q4_k_xl"), (r"q4_k_m", "q4_k_m"), (r"q4_k_s", "q4_k_s"), (r"iq4_nl", "iq4_nl"),
    (r"q5_k_m", "q5_k_m"), (r"q6_k", "q6_k"), (r"q8_0|\bq8\b", "q8_0"), (r"q4_0|\bqat\b", "q4_0"), (r"q4_1", "q4_1"),
    (r"8-?bit", "mlx-8bit"), (r"6-?bit", "mlx-6bit"), (r"4-?bit|mlx", "mlx-4bit"),
    (r"\bf16\b|fp16|bf16|^none$", "f16"), (r"\bq4\b", "q4_k_m"),
)  # fmt: skip


def number(value: object) -> float | None:
    """Return a positive number, or None for what is empty, a range or a word."""
    try:
        found = float(str(value))
    except ValueError:
        return None
    return found if 0 < found < float("inf") else None


def type_of(text: str) -> str | None:
    return next((name for pattern, name in _TYPES if re.search(pattern, text.lower())), None)


def _speed_row(raw: dict[str, object], rows: Rows) -> None:
    table = str(raw.get("set", ""))
    hw, model = str(raw.get("hw", "")), str(raw.get("model", "")).lower()
    cores = f" {raw['gpu_cores']} core" if raw.get("gpu_cores") else ""
    machine = machine_of(hw + cores, rows, table)
    found = shape_of(_NAMES.get(model, model), rows, table) if machine else None
    type_name = (
        "mxfp4" if "gpt-oss" in model.replace(" ", "-") else type_of(re.sub(r"\(.*\)", "", str(raw.get("quant", ""))))
    )
    if not machine or not found:
        return
    if type_name is None:
        rows.left_out[f"{table}: type of the weights not told"] += 1
        return
    decode = raw.get("tg128_tok_s") or raw.get("tg_tok_s") or raw.get("gen1024_tok_s") or raw.get("decode_tok_s")
    prompts = {"pp512_tok_s": 512, "pp2048_tok_s": 2048, "prompt1024_tok_s": 1024, "prefill_tok_s": 512}
    key = next((k for k in prompts if raw.get(k)), None)
    status = str(raw.get("status") or "")
    rows.add(
        Row(
            table, f"{machine.name} {machine.cores or ''}x{machine.count}", machine,
            build_of(table, machine, str(raw.get("backend", "")), hw), found[0], found[1], type_name,
            decode=number(decode),
            prefill=number(raw[key]) if key else None,
            prompt=prompts.get(key or "", 512),
            memory_gib=(number(raw.get("peak_mem_gb")) or 0) * 1e9 / GIB or None,
            context=1536 if "gen1024_tok_s" in raw else 512,
            fits=status != "OOM" if status in ("ok", "OOM") else None,
            offloads=not machine.is_unified and status != "ok",
        )
    )  # fmt: skip


def build_of(table: str, machine: Machine, backend: str, hw: str) -> str:
    """Return the build of the runtime, as laws.toml names it."""
    text = backend.lower()
    if table == "litgpt-inference":
        return "pytorch"
    if "vulkan" in text or table.endswith("10879"):
        return {"mps": "vulkan-apple", "xpu": "vulkan-intel"}.get(machine.kind, "vulkan-2025")
    if "ollama" in text and machine.kind == "cuda" and not machine.is_unified:
        return "cuda-ollama"
    if re.search(r"\bb6\d{3}\b", hw) and machine.kind == "cuda":
        return "cuda-before-2026"
    if "4167" in table:
        return "metal-2023"
    if "xiongjie" in table:
        return "metal-2024" if machine.kind == "mps" else "cuda-2024"
    if text.endswith("cpu"):
        return "cpu"
    if "vllm" in text:
        return "vllm"
    if machine.kind == "cuda" and machine.is_unified:
        return "cuda-unified"
    return {"mps": "metal-2026", "cuda": "cuda-2025", "rocm": "rocm-2025", "cpu": "cpu"}.get(
        machine.kind, "vulkan-intel"
    )


def _scoreboard_rows(raws: list[dict[str, str]], rows: Rows) -> Iterator[Row]:
    """llama.cpp's scoreboards: Llama 2 7B Q4_0. Without flash attention, which was the default then."""
    found = shape_of("llama-2-7b", rows, "scoreboards")
    assert found
    by_chip: dict[tuple[str, str, str], dict[str, float]] = {}
    for raw in raws:
        if raw["fa"] == "False":
            by_chip.setdefault((raw["discussion"], raw["chip"], raw["device_key"]), {})[raw["test"]] = number(
                raw["tok_s"]
            )
    for (discussion, chip, key), tests in by_chip.items():
        gib = re.search(r"-(\d+)gb$", key)
        apple = "apple" in chip.lower()
        machine = machine_of(chip, rows, discussion, None if apple or not gib else float(gib[1]))
        if not machine:
            continue
        if gib and not apple and "gb" not in chip.lower() and chip not in ("RTX 3090 Ti", "RTX 4090 D"):
            machine = machine_of(f"{chip} {gib[1]}gb", rows, discussion) or machine
        build = build_of(discussion, machine, "Vulkan" if discussion == "10879" else "", chip)
        yield Row(
            discussion, f"{machine.name} {machine.cores or ''}x1", machine, build, *found, "q4_0",
            decode=tests.get("tg128"), prefill=tests.get("pp512"),
        )  # fmt: skip


def _community_rows(raws: list[dict[str, str]], rows: Rows) -> Iterator[Row]:
    for raw in raws:
        if re.search(r"mtp|spec|-fp16", raw["model"], re.I):
            rows.left_out["community: drafts"] += 1
            continue
        gib = number(raw["vram_gb"]) or 0
        machine = machine_of(raw["hw"].replace(" (integrated)", ""), rows, "community", None)
        if machine and machine.kind == "mps" and gib:
            machine = machine_of(f"{raw['hw']} {gib:.0f}gb", rows, "community") or machine
        found = shape_of(raw["model"], rows, "community") if machine else None
        if not machine or not found:
            continue
        type_name = "mxfp4" if "gpt-oss" in raw["model"] else type_of(raw["model"])
        if type_name is None and raw["provider"] == "ollama":
            type_name = "q4_k_m"  # what a tag without a type stands for
        if type_name is None:
            rows.left_out["community: type of the weights not told"] += 1
            continue
        build = "vllm" if raw["provider"] == "vllm" else build_of("community", machine, raw["provider"], raw["hw"])
        yield Row(
            "community", f"{machine.name} x{raw['gpus'] or 1}", machine, build, *found, type_name,
            decode=number(raw["tok_s"]), offloads=not machine.is_unified,
        )  # fmt: skip


def _cache_rows(raws: list[dict[str, str]], rows: Rows) -> Iterator[Row]:
    for raw in raws:
        flags = json.loads(raw["flags"] or "{}")
        type_name = type_of(raw["quant"] or raw["model"])
        if flags.get("specDecoding") or flags.get("mtpEnabled") or "MTP" in raw["model"]:
            rows.left_out["cache: drafts"] += 1
        elif raw["preset"] == "CPU Only" or type_name is None or (number(raw["batch"]) or 1) != 1:
            rows.left_out["cache: machine, type of the weights or batch not told"] += 1
        else:
            machine = machine_of(raw["preset"], rows, "cache")
            found = shape_of(raw["model"], rows, "cache") if machine else None
            if machine and found:
                yield Row(
                    "cache", f"{machine.name} x1", machine, build_of("cache", machine, "", ""), *found, type_name,
                    decode=number(raw["decode_tok_s"]), prefill=number(raw["prefill_tok_s"]),
                    prompt=int(number(raw["prompt"]) or 512),
                    memory_gib=number(raw["peak_vram_gb"]), context=int(number(raw["ctx"]) or 2048),
                )  # fmt: skip


def _mac_rows(raws: list[dict[str, str]], rows: Rows) -> Iterator[Row]:
    """One metric a line: lines of one machine, model, type and framework belong together."""
    grouped: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for raw in raws:
        try:
            key = (raw["hw"], raw["model"], raw["quant"], raw["framework"])
            grouped.setdefault(key, {})[raw["metric"].lower()] = float(raw["value"])
        except (ValueError, KeyError):
            rows.left_out["mac-llm-bench: no number"] += 1
    for (hw, model, quant, framework), values in grouped.items():
        machine = machine_of(hw, rows, "mac-llm-bench")
        found = shape_of(model, rows, "mac-llm-bench") if machine else None
        type_name = ("mlx-4bit" if "mlx" in framework.lower() and "4" in quant else None) or type_of(f"{quant} {model}")
        if not machine or not found or type_name is None:
            rows.left_out["mac-llm-bench: model or type not told"] += bool(machine)
            continue
        decode = next((v for k, v in values.items() if re.search(r"tg|decode|gen", k)), None)
        prefill = next(((k, v) for k, v in values.items() if re.search(r"pp|prefill|prompt", k)), None)
        tokens = re.search(r"(\d{3,5})", prefill[0]) if prefill else None
        memory = next((v for k, v in values.items() if "mem" in k), None)
        yield Row(
            "mac-llm-bench", f"{machine.name} {machine.cores or ''}x1", machine, "metal-2026", *found, type_name,
            decode=decode, prefill=prefill[1] if prefill else None, prompt=int(tokens[1]) if tokens else 512,
            memory_gib=memory,
        )  # fmt: skip
