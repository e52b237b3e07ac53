"""llama.cpp's own `llama_model_quantize`, in a process of its own: `python -m tests.shrink.reference JSON`."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from settle.shrink.types.mixes import MIXES


def llama_quantize(source: Path, folder: Path, recipes, means: Mapping | None = None, **params) -> dict[str, Path]:
    """The file of each recipe as llama.cpp makes it. means: tensor name → float32. Recipes it refuses are left out."""
    folder.mkdir(exist_ok=True)
    targets = {recipe: folder / f"{recipe}.gguf" for recipe in recipes}
    job = {
        "source": str(source),
        "targets": [[str(target), MIXES[recipe]] for recipe, target in targets.items()],
        "params": params,
        "means": None,
    }
    if means is not None:
        job["means"] = str(folder / "means.npz")
        np.savez(job["means"], **means)
    done = subprocess.run(
        [sys.executable, "-m", "tests.shrink.reference", json.dumps(job)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused = json.loads(done.stdout.splitlines()[-1])
    return {recipe: target for recipe, target in targets.items() if str(target) not in refused}


def main(job: dict) -> None:
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    ffi, lib = get_ffi(), get_lib()
    lib.llama_backend_init()
    params = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    for key, value in job["params"].items():
        setattr(params, key, value)
    kept = []
    if job["means"]:
        means = dict(np.load(job["means"]))
        entries = ffi.new("struct llama_model_imatrix_data[]", len(means) + 1)
        for entry, (name, values) in zip(entries, means.items(), strict=False):
            kept += [ffi.new("char[]", name.encode()), ffi.from_buffer("float[]", values)]
            entry.name, entry.data, entry.size = kept[-2], kept[-1], values.size
        params.imatrix = entries
    refused = []
    for target, file_type in job["targets"]:
        params.ftype = file_type
        if lib.llama_model_quantize(job["source"].encode(), target.encode(), params):
            refused.append(target)
    print(json.dumps(refused))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
