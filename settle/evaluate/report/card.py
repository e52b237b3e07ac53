"""The model card: what a model is, what it was trained on, how that went, and how to use it.

Written from plain dicts: plan.json, result.json and the data ledger. What a dict does not have, the card leaves out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from settle.base.files import write_atomic
from settle.base.run.result import ESTIMATED, energy_is_counted, figures_of, loss_unit
from settle.base.words.amounts import amount, count_in_words

MOST_SOURCES = 40
Values = Mapping[str, Any]


def write_card(
    path: Path, name: str, plan: Values, result: Values, ledger: Values, compared: Sequence[str] = ()
) -> None:
    """Write the card in Markdown, with the front matter that model hubs read."""
    write_atomic(path, card(name, plan, result, ledger, compared))


def card(name: str, plan: Values, result: Values, ledger: Values, compared: Sequence[str] = ()) -> str:
    """Return the card's text.

    plan, result: as in plan.json and result.json; ledger: `Ledger.as_dict()` of the data; compared: lines on how a
    tuned model does against its base, or a distilled one against its teacher.
    """
    audit = result.get("audit") or {}
    sections = [
        _front(plan, result),
        [f"# {plain(name)}", "", *_summary(plan, result, ledger)],
        _section("Use", _use(name, plan, result)),
        _section("Model", _table(_model(plan, ledger))),
        _section("Training data", list(_data(ledger))),
        _section("Training", _table(_training(plan, result))),
        _section("Result", [*_table(_outcome(plan, result)), *_forecasts(result)]),
        _section("Against its teacher" if plan.get("objective") == "distill" else "Against its base", list(compared)),
        _section("Check of the exported file", _gate(result.get("gate") or {})),
        _section("What left this machine", [plain(audit["sentence"])] if audit.get("sentence") else []),
        _section("Made with", _table(_made_with(plan))),
    ]
    return "\n".join(line for section in sections for line in section).rstrip() + "\n"


def _front(plan: Values, result: Values) -> list[str]:
    bits = (result.get("best") or {}).get("bits_per_byte")
    tuning = plan.get("tuning") or {}
    library = "peft" if tuning and tuning["adapter_name"] != "full" else "transformers"
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation", "tags:", "- settle"]
    base_id = (result.get("base") or {}).get("transformers") or tuning.get("base_name")
    lines[1:1] = [f"base_model: {json.dumps(base_id)}"] if tuning else []
    lines += [f"- {plan['architecture_name']}"] if plan.get("architecture_name") else []
    lines += [f"bits_per_byte: {bits:.4f}"] if _is_number(bits) else []
    return [*lines, "---", ""]


def _summary(plan: Values, result: Values, ledger: Values) -> list[str]:
    parameters = plan.get("num_parameters")
    what = f"A language model with {count_in_words(parameters)} parameters" if parameters else "A language model"
    size, tuning = (ledger.get("train") or {}).get("bytes"), plan.get("tuning")
    if tuning:
        method = plain(tuning["adapter_name"])
        how = "every weight trained" if method == "full" else f"a {method} adapter"
        what = f"{what}: {plain(tuning['base_name'])} (sha256 `{str(tuning['base_sha256'])[:16]}…`), {how}"
    text = (what if tuning else f"{what}, trained from nothing") + (f" on {_bytes(size)} of text" if size else "") + "."
    verdict = result.get("verdict")
    if verdict:
        text += f" Verdict: **{verdict}**" + (f" ({plain(result['why'])})" if result.get("why") else "") + "."
    nature = (
        "It answers in the way of the examples it was tuned on."
        if tuning
        else "It is a base model: it completes text, and was not trained to hold a conversation or to follow "
        "instructions."
    )
    lines = [text, "", f"{nature} What it writes may be wrong, and may repeat what it was trained on.", ""]
    if prompt := result.get("system_prompt"):
        quoted = [f"> {plain(line)}" for line in str(prompt).splitlines()]
        lines += [
            "Every row had this system prompt, which is the model's default where none is given:",
            "",
            *quoted,
            "",
        ]
    return lines


def _use_tuned(name: str, tuning: Values, files: Values, base_id: str | None) -> list[str]:
    """Show how to use an adapter, or a whole model. base_id: what transformers loads its base by."""
    lines = ["```sh", f"settle chat {name}                                  # settle"]
    if "lora_gguf" in files:
        base = _code(Path(tuning["base"]).name)
        lines.append(f"llama-cli -m {base} --lora {name}-lora.gguf          # llama.cpp, over the base's own file")
    else:
        lines.append(f"llama-cli -m {name}.gguf                             # llama.cpp")
        lines.append(f"lms import {name}.gguf                               # LM Studio")
    if "lora_gguf" in files:
        lines.append(f"settle export {name} --to ollama                     # Ollama: merged, it takes no adapters")
    else:
        lines.append(f"ollama create {name} -f Modelfile && ollama run {name}   # Ollama")
    lines += ["```", ""]
    if "adapter" in files and base_id:
        lines += ["```python", "from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
        lines += [f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base_id)})"]
        lines += ['model = PeftModel.from_pretrained(base, "adapter")', "```", ""]
    elif "adapter" in files:
        lines += [
            f"For transformers, merge it into a folder first: `settle export {name} --to safetensors --out hf`",
            "",
        ]
        lines += ["```python", "from transformers import AutoModelForCausalLM"]
        lines += ['model = AutoModelForCausalLM.from_pretrained("hf")', "```", ""]
    return lines


def _adapter(tuning: Values) -> str:
    """Return the adapter's method and its settings, such as rank, alpha and targets."""
    settings = {key: value for key, value in (tuning.get("adapter") or {}).items() if value not in (None, [], "")}
    shown = (", ".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in settings.values())
    return "; ".join([str(tuning["adapter_name"]), *(f"{k} {v}" for k, v in zip(settings, shown, strict=True))])


def _use(name: str, plan: Values, result: Values) -> list[str]:
    if plan.get("tuning"):
        base_id = (result.get("base") or {}).get("transformers")
        return _use_tuned(name, plan["tuning"], result.get("files") or {}, base_id)
    context = (plan.get("architecture") or {}).get("max_position_embeddings", 512)
    return [
        "```sh",
        f"settle chat {name}                                  # settle",
        f"llama-cli -m {name}.gguf -no-cnv -p 'Once'          # llama.cpp",
        f"ollama create {name} -f Modelfile && ollama run {name}   # Ollama",
        f"lms import {name}.gguf                              # LM Studio",
        "```",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'tokenizer, model = AutoTokenizer.from_pretrained("hf"), AutoModelForCausalLM.from_pretrained("hf")',
        'inputs = tokenizer("Once", return_tensors="pt")',
        f"print(tokenizer.decode(model.generate(**inputs, max_length={context}, do_sample=True)[0]))",
        "```",
        "",
    ]


def _model(plan: Values, ledger: Values) -> Iterator[tuple[str, object]]:
    shape = plan.get("architecture") or {}
    yield "architecture", plan.get("architecture_name")
    yield "parameters", _whole(plan.get("num_parameters"))
    if tuning := plan.get("tuning"):
        yield "trained", _adapter(tuning)
    yield "layers", shape.get("num_hidden_layers")
    yield "width", shape.get("hidden_size")
    heads, kv_heads = shape.get("num_attention_heads"), shape.get("num_key_value_heads")
    yield "heads", heads and (f"{heads}, {kv_heads} for keys and values" if kv_heads != heads else heads)
    yield "context", shape.get("max_position_embeddings") and f"{shape['max_position_embeddings']} tokens"
    tokenizer = ledger.get("tokenizer") or {}
    if tokenizer:
        per_token = tokenizer.get("bytes_per_token")
        yield "tokenizer", f"byte-level BPE, {_whole(tokenizer.get('entries'))} entries, {per_token} bytes per token"


def _data(ledger: Values) -> Iterator[str]:
    for key, side in (("train", "Trained on"), ("selection", "Weights chosen on"), ("held_out", "Judged on")):
        if counts := ledger.get(key):
            yield (
                f"{side} {_number_of(counts.get('documents'), 'document')}, {_bytes(counts.get('bytes'))}, "
                f"{_whole(counts.get('tokens'))} tokens."
            )
    yield ""
    for key, title in (("dropped", "Left out"), ("mended", "Mended"), ("skipped", "Files not read")):
        if counts := ledger.get(key):
            read = _number_of(ledger.get("read"), "document") if key != "skipped" else None
            yield f"{title}, of {read} read:" if read else f"{title}:"
            yield ""
            for reason, entry in sorted(counts.items(), key=lambda item: -item[1]["count"]):
                yield f"- {plain(reason)}: {_whole(entry['count'])}{_example(entry.get('examples'))}"
            yield ""
    if findings := ledger.get("found"):
        yield "Found in the text: " + ", ".join(f"{plain(kind)} ({_whole(n)})" for kind, n in findings.items()) + "."
        yield ""
    yield from _sources(ledger.get("sources") or [])


def _example(examples: Sequence[Values] | None) -> str:
    return f" (such as `{_code(examples[0]['where'])}`)" if examples and examples[0].get("where") else ""


def _sources(sources: Sequence[Values]) -> Iterator[str]:
    if not sources:
        return
    largest = sorted(sources, key=lambda s: -s.get("bytes", 0))[:MOST_SOURCES]
    more = "" if len(largest) == len(sources) else f" The largest {len(largest)}; the ledger has all."
    total = sum(s.get("bytes", 0) for s in sources)
    yield f"{_number_of(len(sources), 'file')}, {_bytes(total)}.{more}"
    yield ""
    yield "| source | bytes | SHA-256 |"
    yield "|---|---|---|"
    for source in largest:
        yield f"| `{_code(source.get('name'))}` | {_whole(source.get('bytes'))} | `{str(source.get('sha256'))[:16]}…` |"
    yield ""


def _training(plan: Values, result: Values) -> Iterator[tuple[str, object]]:
    loop, best, actual = plan.get("loop") or {}, result.get("best") or {}, result.get("actual") or {}
    yield "tokens seen, best weights", _whole(best.get("tokens"))
    yield "steps, best weights", _whole(best.get("step"))
    yield "tokens per step", _whole(loop.get("tokens_per_step"))
    rates = ", ".join(f"{key} {value}" for key, value in (plan.get("optimizer") or {}).items())
    yield "optimizer", plan.get("optimizer_name") and f"{plan['optimizer_name']} ({rates})"
    yield "precision", plan.get("dtype")
    yield "seed", loop.get("seed")
    yield "time", _amount("time", actual.get("time"))
    yield "energy", _amount("energy", actual.get("energy"))
    yield "cost", _cost(actual.get("cost"), (result.get("forecast") or {}).get("cost"))
    yield "peak memory", _amount("peak_memory", actual.get("peak_memory"))


def _outcome(plan: Values, result: Values) -> Iterator[tuple[str, object]]:
    best = result.get("best") or {}
    yield "verdict", result.get("verdict")
    yield "why", result.get("why")
    loss, stderr = best.get("loss"), best.get("stderr")
    if _is_number(loss):
        share = best.get("held_out_share")
        of_text = f", on {share:.0%} of the held-out text" if _is_number(share) else ""
        spread = f" ± {stderr:.4f}" if _is_number(stderr) else ""
        yield "held-out loss", f"{loss:.4f}{spread} {loss_unit(plan.get('objective'))}{of_text}"
    if _is_number(best.get("bits_per_byte")):
        yield "bits per byte", f"{best['bits_per_byte']:.4f}"


def _forecasts(result: Values) -> list[str]:
    """Forecast beside the actual figure, where both are known and the actual one is no estimate."""
    forecast, actual = result.get("forecast") or {}, result.get("actual") or {}
    lines = []
    left_out = ("cost",) if energy_is_counted(forecast) else ESTIMATED
    for key, figure in figures_of(forecast).items():
        if key not in left_out and figure.value is not None and _is_number(actual.get(key)):
            value, low, high = (_amount(key, end) for end in (figure.value, figure.low, figure.high))
            lines.append(f"| {key.replace('_', ' ')} | {value} ({low} – {high}) | {_amount(key, actual[key])} |")
    return ["| | forecast (80 %) | actual |", "|---|---|---|", *lines, ""] if lines else []


def _gate(gate: Values) -> list[str]:
    if not gate:
        return []
    if not gate.get("passed"):
        return [f"Failed: {plain(gate.get('first_difference'))}", ""]
    lines = ["The GGUF file was compared, in llama.cpp, with the model that was trained:", ""]
    lines.append(f"- {gate.get('prompts_equal')} rendered prompts equal byte for byte")
    lines.append(f"- {gate.get('texts_equal')} texts, held-out and adversarial, give equal token ids")
    if _is_number(gate.get("kl")):
        lines.append(f"- KL divergence {gate['kl']:.1e} nats per token over {gate.get('positions')} positions")
    lines.append(f"- {gate.get('greedy_tokens_equal')} of {gate.get('greedy_tokens')} greedy tokens equal")
    return [*lines, ""]


def _made_with(plan: Values) -> Iterator[tuple[str, object]]:
    yield from (plan.get("versions") or {}).items()
    machine = plan.get("machine") or {}
    for key in ("system", "processor", "python"):
        yield key, machine.get(key)
    yield "cores", (machine.get("cores") or {}).get("usable")
    yield "data", plan.get("corpus")


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines] if any(lines) else []


def _table(rows: Iterator[tuple[str, object]]) -> list[str]:
    shown = [f"| {key} | {plain(value)} |" for key, value in rows if value not in (None, "")]
    return ["| | |", "|---|---|", *shown, ""] if shown else []


def plain(value: object) -> str:
    """One line of text in which a person's file names and words cannot become markup or a table cell's end."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    for character in ("\\", "|", "<", "`", "["):
        text = text.replace(character, "\\" + character)
    return text


def _code(value: object) -> str:
    return " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> str | None:
    return f"{value:,.0f}" if _is_number(value) else None


def _number_of(value: object, thing: str) -> str | None:
    return f"{value:,.0f} {thing}{'' if value == 1 else 's'}" if _is_number(value) else None


def _bytes(value: object) -> str | None:
    return amount(value, "bytes").replace(" B", " bytes") if _is_number(value) else None


def _cost(value: object, forecast: object) -> str | None:
    """In the currency that the forecast names; a fraction of a cent is no amount that anyone wants to read."""
    if not _is_number(value):
        return None
    currency = str(forecast.get("unit", "")) if isinstance(forecast, Mapping) else ""
    return f"{value:,.2f} {currency}".rstrip() if value >= 0.01 or value == 0 else "less than a cent"


def _amount(key: str, value: object) -> str | None:
    """Return a number with its unit: time in seconds, energy in joules, memory in bytes."""
    if not _is_number(value):
        return None
    if key == "time":
        hours, minutes = divmod(round(value) // 60, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {round(value) % 60} s"
    if key == "energy":
        return amount(value, "J")
    if "memory" in key:
        return amount(value, "bytes")
    if key == "tokens":
        return count_in_words(value)
    return f"{value:.4g}"
