"""The error of the gradient in bfloat16 where attention scores are as large as Qwen2.5's, ours and transformers'.

python bench/proof.py families          every family in its TINY shape, scores of 1,450, against float64
python bench/proof.py sizes             the error against the size of the scores: where float32 begins to pay
python bench/proof.py shape             the 24 layers of Qwen2.5 0.5B (896 wide, 14 heads, 2 of keys), against float32
python bench/proof.py tune              `settle tune` on that shape in bfloat16, all else at its defaults
python bench/proof.py speed OTHER       a step on ordinary scores, this tree and that in folder OTHER in turns

Products of bfloat16 are computed in float32 and rounded, as hardware for bfloat16 does it: they are not slow then.
"""

import copy
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HERE = str(Path(__file__).parent.parent)
sys.path.insert(0, os.environ.get("TREE", HERE))
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer  # noqa: E402
from settle.formats.safetensors import export_safetensors  # noqa: E402
from settle.model.architectures.qwen2 import Qwen2  # noqa: E402
from settle.train.objectives.next_token import NextToken  # noqa: E402
from tests.model.architectures.cases import CASES, random_model  # noqa: E402

if "TREE" not in os.environ:
    from settle.model.decoder import score_sizes, too_large
    from tests.model.large_scores import KEY_BIAS, SCORE, with_large_scores

LENGTHS = [7, 30, 16, 21, 30]
SHAPE = Qwen2(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
    head_dim=64, vocab_size=512, rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=32768,
    tie_word_embeddings=True,
)  # fmt: skip
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default,
            torch.ops.aten.baddbmm.default, torch.ops.aten.addmm.out, torch.ops.aten.mm.out}  # fmt: skip


class QuickBfloat16(TorchDispatchMode):
    """Products of bfloat16 by way of float32."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in PRODUCTS or "out" in kwargs or args[-1].dtype != torch.bfloat16:
            return function(*args, **kwargs)
        wide = [a.float() if isinstance(a, torch.Tensor) else a for a in args]
        return function(*wide, **kwargs).bfloat16()


def drawn(vocab_size, lengths):
    random = torch.Generator().manual_seed(1)
    inputs, targets = torch.randint(0, vocab_size, (2, sum(lengths)), generator=random)
    return inputs, targets, torch.tensor([0, *lengths]).cumsum(0).int()


def ours(model, dtype, batch):
    model.compute_dtype = dtype
    model.zero_grad(set_to_none=True)
    total, count = NextToken().loss(model, *batch)
    (total / count).backward()
    return {n: p.grad.float() if dtype != torch.float64 else p.grad for n, p in model.named_parameters()}


def theirs(part, weights, batch, lengths):
    """Gradients of transformers in bfloat16, whose weights are bfloat16 too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = part.to_hf_config()
    config = AutoConfig.for_model(config.pop("model_type"), **config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    own, names = dict(model.named_parameters()), part.hf_names()
    if not set(names.values()) <= set(own):
        return {}  # experts are stored in another way
    with torch.no_grad():
        for name, weight in weights.items():
            own[names[name]].copy_(weight)
    model = model.to(torch.bfloat16).train()
    inputs, targets, _ = batch
    for text, wanted in zip(inputs.split(lengths), targets.split(lengths), strict=True):
        logits = model(text[None]).logits[0].float()
        (torch.nn.functional.cross_entropy(logits, wanted, reduction="sum") / len(inputs)).backward()
    own = dict(model.named_parameters())
    return {name: own[names[name]].grad for name in weights}


def off(part, exact):
    if not part:
        return math.nan
    gap = sum(float((part[n].to(w.dtype) - w).norm()) ** 2 for n, w in exact.items())
    return math.sqrt(gap / sum(float(w.norm()) ** 2 for w in exact.values()))


def compared(name, model, part, lengths, exact_dtype):
    """One line: the error in bfloat16 before, with the scores that are measured in float32, and of transformers."""
    batch = drawn(part.vocab_size, lengths)
    exact = ours(copy.deepcopy(model).double() if exact_dtype == torch.float64 else model, exact_dtype, batch)
    model.compute_dtype = torch.bfloat16
    sizes = score_sizes(model, batch[0], batch[2])
    before = off(ours(model, torch.bfloat16, batch), exact)
    model.float32_scores = too_large(sizes)
    after = off(ours(model, torch.bfloat16, batch), exact)
    model.zero_grad(set_to_none=True)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    peers = off(theirs(part, weights, batch, lengths), exact)
    print(f"{name:22} largest score {max(sizes):6,.0f}, {len(too_large(sizes))} of {len(sizes)} layers in float32: "
          f"{before:7.1%} -> {after:6.1%}; transformers {peers:.1%}", flush=True)  # fmt: skip


def biased(part, shares):
    """Make a fresh model whose biases put SCORE times a share on every key of a layer."""
    model = part.build(seed=0)
    with torch.no_grad():
        for layer, share in zip(model.layers, shares, strict=True):
            a, o = layer.self_attn, layer.options
            slow = o.head_dim // 2 - 1
            a.k_proj.bias.view(o.kv_heads, -1)[:, slow] = KEY_BIAS * share**0.5
            a.q_proj.bias.view(o.heads, -1)[:, slow] = SCORE * share**0.5 * o.head_dim**0.5 / KEY_BIAS
    return model


def families():
    for name, part in CASES.items():
        compared(name, with_large_scores(part), part, LENGTHS, torch.float64)


def sizes():
    for share in (0.001, 0.005, 0.01, 0.02, 0.04, 0.1, 0.3, 1.0):
        for name in ("qwen2", "llama-biases-tied"):
            part = CASES[name]
            model = random_model(part)
            other = biased(part, [share] * len(model.layers))
            with torch.no_grad():
                for layer, source in zip(model.layers, other.layers, strict=True):
                    layer.self_attn.k_proj.bias.copy_(source.self_attn.k_proj.bias)
                    layer.self_attn.q_proj.bias.copy_(source.self_attn.q_proj.bias)
            compared(f"{name} {share * SCORE:.0f}", model, part, LENGTHS, torch.float64)


def shape():
    compared("Qwen2.5 0.5B's shape", biased(SHAPE, [0.85**i for i in range(24)]), SHAPE, [32, 48], torch.float32)


def tune():
    import settle

    with tempfile.TemporaryDirectory() as folder:
        os.environ["SETTLE_HOME"] = f"{folder}/home"
        source = "".join(f"def f{i}(self):\n    return self.red({i})\n" for i in range(500))
        tokenizer = ByteBpeTokenizer.train([source], SHAPE.vocab_size, Path(folder))
        part = SHAPE.with_fields(vocab_size=tokenizer.vocab_size)
        model = biased(part, [0.85**i for i in range(24)])
        weights = {n: p.detach() for n, p in model.named_parameters()}
        export_safetensors(part, weights, tokenizer, Path(folder) / "base", "f32", {})
        del model, weights
        rows = [{"prompt": f"def f{i}(self):", "completion": f"return self.red({i})"} for i in range(60)]
        (Path(folder) / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = settle.tune(f"{folder}/base", f"{folder}/rows.jsonl", dtype="bfloat16", steps=4, compare=False)
        plan = json.loads((run.path / "plan.json").read_text())
        print("layers in float32:", plan["tuning"]["float32_scores"])
        print(*run.result.proof, sep="\n")
        print(run.verdict, run.result.best)


def steps():
    """Seconds of a step on ordinary scores, in float32 and in bfloat16."""
    part = CASES["llama"].with_fields(hidden_size=256, intermediate_size=768, num_hidden_layers=4, head_dim=32)
    part = part.with_fields(num_attention_heads=8, num_key_value_heads=2)
    model, batch = part.build(seed=0), drawn(part.vocab_size, [256] * 4)
    for dtype in (torch.float32, torch.bfloat16):
        took = []
        for _ in range(6):
            began = time.perf_counter()
            ours(model, dtype, batch)
            took.append(time.perf_counter() - began)
        print(min(took))


def speed(other):
    ratios = []
    for _ in range(8):
        pair = []
        for tree in ({}, {"TREE": other}):
            done = subprocess.run(
                [sys.executable, __file__, "steps"], env={**os.environ, **tree}, stdout=-1, check=True
            )
            pair.append([float(line) for line in done.stdout.split()])
        ratios.append([there / here for here, there in zip(*pair, strict=True)])
    for dtype, values in zip(("float32", "bfloat16"), zip(*ratios, strict=True), strict=True):
        print(dtype, "speed here / there:", " ".join(f"{v:.3f}" for v in sorted(values)))


if __name__ == "__main__":
    with QuickBfloat16():
        globals()[sys.argv[1]](*sys.argv[2:])
