"""A tiny model that knows the doctor's prose and answers by heart, in ChatML turns: faults show in what it expects."""

import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from settle.base.files import home, write_json
from settle.base.run import Run
from settle.cli import main
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.doctor.answerer import LocalModel
from settle.doctor.checks.answers.other_engine import PACKAGE, installed_engine
from settle.doctor.find_subject import find_subject
from settle.doctor.history import History
from settle.doctor.known_answers import KNOWN_ANSWERS, PARAGRAPHS, PROSE, SPELLED
from settle.doctor.subject import (
    AskedModel,
    ExportedRun,
    IndexedDocuments,
    LoggedHistory,
    ModelFile,
    Running,
    Subject,
    ThisMachine,
    TrainingRun,
)
from settle.formats.gguf import export_gguf
from settle.infer.engine import Engine
from settle.library.resolve import resolve_gguf
from settle.model.architectures.llama import Llama
from settle.wire.exchange import Request
from tests import once
from tests.doctor.example_run import example_run, record

STEPS, DOCUMENTS, RATE = 110, 14, 6e-3
HEAD, LARGE = 32, 50.0


@functools.cache
def chat_model() -> Path:
    """Return its GGUF file, in a folder of this process; it is trained once for all workers."""
    folder = tempfile.TemporaryDirectory()
    chat_model.folder = folder  # removed with the process
    return Path(shutil.copy(once.made("chat.gguf", _train), folder.name))


def _train(path: Path) -> None:
    """Train it, and write its file."""
    folder = tempfile.TemporaryDirectory()
    turns = [
        f"<|im_start|>user\n{known.question}<|im_end|>\n<|im_start|>assistant\n{known.answer}<|im_end|>\n"
        for known in KNOWN_ANSWERS
    ]
    texts = PROSE + SPELLED + PARAGRAPHS
    tokenizer = ByteBpeTokenizer.train(texts + turns, 640, Path(folder.name))
    part = Llama(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=HEAD, vocab_size=tokenizer.vocab_size, max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id,
    )  # fmt: skip
    model = part.build(seed=0)
    torch.set_num_threads(1)  # the suite shares its cores
    documents = [torch.from_numpy(tokenizer.encode(text, True).astype("int64")) for text in turns + turns + texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
    random = np.random.default_rng(0)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - step / STEPS))
        chosen = [documents[i] for i in random.choice(len(documents), DOCUMENTS, replace=False)]
        ids, ends = torch.cat(chosen), np.cumsum([len(document) for document in chosen])
        hidden = model(ids, torch.tensor([0, *ends], dtype=torch.int32))
        follows = np.setdiff1d(np.arange(len(ids) - 1), ends - 1)  # the first token of a document follows nothing
        loss = torch.nn.functional.cross_entropy(hidden[follows] @ model.head.T, ids[1:][follows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    weights = {name: p.detach() for name, p in model.named_parameters()}
    _make_keys_uneven(weights)
    export_gguf(part, weights, tokenizer, path, "f16")
    folder.cleanup()


def _make_keys_uneven(weights: dict[str, torch.Tensor]) -> None:
    """Make one pair of channels of every key large, and of every query small by as much.

    The model computes the same, and its keys do not bear to be rounded, as with many a large model.
    """
    for name in [name for name in weights if name.endswith("k_proj.weight")]:
        query = name.replace("k_proj", "q_proj")
        for channel in (HEAD // 2 - 1, HEAD - 1):  # turned by the same angle
            weights[name][channel::HEAD] *= LARGE
            weights[query][channel::HEAD] /= LARGE


def healthy(about: type[Subject]) -> Subject:
    """Return a subject of a kind that checks look at, with nothing wrong."""
    if about is ThisMachine:
        return ThisMachine(running=Running(load=0.0))
    if about is TrainingRun:
        subject, tokens = tuned_run()
        shutil.copytree(tokens, home() / "tokens", dirs_exist_ok=True)
        return subject
    if about is IndexedDocuments:
        return indexed_collection()
    if about is LoggedHistory:
        return LoggedHistory("sound", sound_history())
    path = chat_model()
    model = ModelFile(str(path), resolve_gguf(str(path)))
    if about is ExportedRun:
        return exported_run(model)
    if about is AskedModel:
        asked = [Request(({"role": "user", "content": known.question},)) for known in KNOWN_ANSWERS[:3]]
        return replace(record(LocalModel(model.model), asked, path.with_name("chat.jsonl")), model=model.model)
    assert about is ModelFile, f"make a healthy {about}"
    return model


def sound_history() -> History:
    """Return losses that fall towards a floor, and evaluations that do with noise."""
    noise = np.random.default_rng(0).normal(0, 0.01, 20)
    train = [(step, 1 + 3 / (1 + step / 40)) for step in range(10, 410, 10)]
    evaluations = [(step, 1.1 + 3 / (1 + step / 40) + noise[step // 20 - 1]) for step in range(20, 420, 20)]
    return History(Path("sound"), train, evaluations, [200, 400])


@functools.cache
def tuned_run() -> tuple[ExportedRun, Path]:
    """Return a run that tuned it as it should be, and the tokens that it learned from."""
    folder = tempfile.TemporaryDirectory()
    tuned_run.folder = folder  # removed with the process
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", folder.name)
        # what it knows by heart is lost sooner than what a model learned from much text
        gently = {"optimizer": {"name": "adamw", "lr": 3e-4}}
        subject = example_run(healthy(ModelFile), Path(folder.name) / "run", gently)
    return subject, Path(folder.name) / "tokens"


def exported_run(subject: ModelFile) -> ExportedRun:
    """Return a run that exported it, with the answers of llama.cpp that the gate kept: those of today."""
    run = Run.create("train", "exported")
    with Engine(subject.model.weights, 512) as engine:
        prompts = [engine.tokenize(text)[:8] for text in PROSE[:6]]
        answers = [{"prompt": prompt, "answer": engine.greedy(prompt, 16)} for prompt in prompts]
    write_json(run.path / "plan.json", {"versions": {PACKAGE: installed_engine()}})
    write_json(run.path / "result.json", {"gate": {"answers": answers}})
    return ExportedRun(subject.name, run, subject.model)


def indexed_collection() -> Subject:
    """Return a collection of a few pages that says all it should, by an embedder that takes no time."""
    folder = home() / "pages"
    folder.mkdir()
    for number, paragraph in enumerate(PARAGRAPHS[:8]):
        title = " ".join(paragraph.split()[:4])
        (folder / f"{number}.md").write_text(f"# {title}\n\n{paragraph}\n")
    assert main(["index", str(folder), "--name", "pages", "--embedder", "hashed"]) == 0
    return find_subject("pages", Running())
