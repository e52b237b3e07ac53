"""Every architecture through every kind of work on a card that is not there, to find what is on the wrong device.

`tests/pretend_card` says how. Prints a table of waits of the host in a warm step, lists errors, the operations that
were met, and those that Apple's MPS has no kernel for, by torch's own table (native_functions.yaml).

    python bench/gpu_trace.py --device cuda --out traces.jsonl

"cuda" needs torch's CUDA build; a card or its driver is not needed. Without a driver torch refuses every backward pass,
since it asks which cards have a context; then this file compiles a library that answers "none" (needs `cc`), and starts
itself anew with it. "meta" runs with every build of torch, and lacks what is chosen for "cuda" by name.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
STAND_IN = "SETTLE_BENCH_NO_DRIVER"
MOST_CARDS = 64
ANSWERS = """
static signed char cards = 0;
void pretend_cards(int number) { cards = (signed char)number; }
signed char _ZN3c104cuda12device_countEv(void) { return cards; }
_Bool _ZN3c104cuda17hasPrimaryContextEa(signed char device) { return 0; }
"""
DRIVER = "int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = 0; return 0; }\n"


def without_driver() -> None:
    """Start anew with a stand-in for the driver's answers, or take it in use."""
    import torch

    if os.environ.get(STAND_IN) is None:
        folder = Path(tempfile.mkdtemp(prefix="settle-no-driver-"))
        library = Path(torch.__file__).parent / "lib/libcaffe2_nvrtc.so"
        listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
        names = {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}
        asked = sorted(n for n in names if n.startswith("cu") and n != "cuDevicePrimaryCtxGetState")
        driver = DRIVER + "".join(f"int {name}(void) {{ return 100; }}\n" for name in asked)
        for file, code, extra in (
            ("answers.so", ANSWERS, []),
            ("libcuda.so.1", driver, ["-Wl,-soname,libcuda.so.1"]),
        ):
            build = ["cc", "-shared", "-fPIC", *extra, "-x", "c", "-", "-o", str(folder / file)]
            subprocess.run(build, input=code, text=True, check=True)
        found = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
        answers = str(folder / "answers.so")
        environment = os.environ | {STAND_IN: answers, "LD_PRELOAD": answers, "LD_LIBRARY_PATH": found}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    torch._C._ensureCUDADeviceGuardSet()
    ctypes.CDLL(os.environ[STAND_IN]).pretend_cards(MOST_CARDS)


def trace(name: str, work: str, dtype: str, device: str) -> dict[str, object]:
    """One work: what was off against the CPU, relative; what waited; or the error."""
    import torch

    from settle.model.architectures import Architecture
    from tests.pretend_card import Trace, pretend_card
    from tests.pretend_card.works import WORKS, Bench

    part, began, warm = Architecture.parts()[name].TINY, time.process_time(), Trace()
    found: dict[str, object] = {"architecture": name, "work": work, "dtype": dtype, "device": device}
    try:
        here = WORKS[work](Bench(part, "cpu", getattr(torch, dtype)))
        with pretend_card(device) as card:

            @contextmanager
            def counted() -> Iterator[None]:
                card.trace.waits.clear()
                yield
                warm.waits.update(card.trace.waits)

            there = WORKS[work](Bench(part, device, getattr(torch, dtype), counted))
        found["operations"] = sorted({(op, *map(str, types)) for op, types in card.trace.operations})
        found["off"] = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(here, there, strict=True))
        found["waits"] = [[w.what, w.operation, w.line, n] for w, n in sorted(warm.waits.items(), key=str)]
    except Exception as e:  # noqa: BLE001  the bench lists what goes wrong
        found["error"] = f"{type(e).__name__}: {e}"
    return found | {"seconds": time.process_time() - began}


def without_kernel(operations: set[str], key: str) -> list[str]:
    """Of operations ("aten::mm", "aten::add.Tensor"), those that torch has no kernel for under a dispatch key."""
    import torchgen
    from torchgen.gen import parse_native_yaml
    from torchgen.model import DispatchKey

    folder = Path(torchgen.__file__).parent / "packaged/ATen/native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    index, missing = parsed.backend_indices[DispatchKey.parse(key)], []
    functions = {f"aten::{f.func.name}": f for f in parsed.native_functions}
    for name in sorted(operations):
        function = functions.get(name.removesuffix(".default"))
        if function is None:
            continue
        composite = function.has_composite_kernel
        delegate = function.structured_delegate and functions[f"aten::{function.structured_delegate}"]
        if not composite and not index.has_kernel(function) and not (delegate and index.has_kernel(delegate)):
            missing.append(name)
    return missing


def report(found: list[dict[str, object]]) -> None:
    works = list(dict.fromkeys(str(f["work"]) for f in found))
    print("| architecture | " + " | ".join(works) + " |\n|---|" + "---|" * len(works))
    for name in dict.fromkeys(str(f["architecture"]) for f in found):
        cells = []
        for work in works:
            of_both = [f for f in found if (f["architecture"], f["work"]) == (name, work)]
            if any("error" in f for f in of_both):
                cells.append("error")
            else:
                cells.append(", ".join(str(sum(w[3] for w in f["waits"])) for f in of_both))  # type: ignore[attr-defined]
        print(f"| {name} | " + " | ".join(cells) + " |")
    errors = [f for f in found if "error" in f]
    print(f"\n{len(found)} traces, {len(errors)} errors")
    for f in errors:
        print(f"- {f['architecture']} {f['work']} {f['dtype']}: {f['error']}")
    places: dict[tuple[str, ...], set[str]] = {}
    for f in found:
        for what, operation, line, number in f.get("waits", []):  # type: ignore[attr-defined]
            places.setdefault((what, operation, line), set()).add(f"{f['work']} {number}")
    for place, where in sorted(places.items()):
        print(f"- {' '.join(place)}: {', '.join(sorted(where))}")
    met = {tuple(o) for f in found for o in f.get("operations", [])}  # type: ignore[attr-defined]
    names = {o[0] for o in met}
    print(f"\n{len(names)} operations; without a kernel on CUDA: {without_kernel(names, 'CUDA') or 'none'}; ", end="")
    print(f"on MPS: {without_kernel(names, 'MPS') or 'none'}")
    wide = sorted({o[0] for o in met if {"torch.float64", "torch.complex128"} & set(o[1:])})
    print(f"operations on float64 or complex128, which MPS has not: {wide or 'none'}")
    for dtype in sorted({f["dtype"] for f in found}, key=str):
        off = [float(f["off"]) for f in found if f["dtype"] == dtype and "off" in f]  # type: ignore[arg-type]
        print(f"{dtype}: losses, norms and tokens are at most {max(off, default=0):.1e} off the CPU's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "meta"], default="meta")
    parser.add_argument("--architectures", nargs="*")
    parser.add_argument("--works", nargs="*")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16"])
    parser.add_argument("--out", type=Path, help="a line for each trace; those that are there are not made again")
    asked = parser.parse_args()
    import torch

    if asked.device == "cuda":
        if not torch.version.cuda:
            sys.exit("this torch is a build without CUDA: use --device meta, or an environment with the CUDA build")
        if not torch.cuda.is_available():
            without_driver()
    from settle.model.architectures import Architecture
    from tests.pretend_card.works import WORKS

    kept = asked.out.read_text().splitlines() if asked.out and asked.out.exists() else []
    found = [json.loads(line) for line in kept]
    done = {(f["architecture"], f["work"], f["dtype"], f["device"]) for f in found}
    for dtype in asked.dtypes:
        for name in asked.architectures or Architecture.parts():
            for work in asked.works or WORKS:
                if (name, work, dtype, asked.device) not in done:
                    found.append(trace(name, work, dtype, asked.device))
                    print(name, work, dtype, found[-1].get("error", "ok"), file=sys.stderr, flush=True)
                    if asked.out:
                        with asked.out.open("a") as file:
                            file.write(json.dumps(found[-1]) + "\n")
    report(found)


if __name__ == "__main__":
    main()
