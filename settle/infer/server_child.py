"""llama.cpp's server in a process of its own. Run by `engine.py` as a script, never imported by it.

Reads one JSON line of settings on stdin, answers one JSON line `{"address": …, "is_guided": …}` on stdout once the
model is loaded, and lives until its stdin closes (its parent is gone or wants it gone) or SIGTERM.
"""

import contextlib
import json
import os
import runpy
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

MACHINE = Path(__file__).parents[1] / "machine"
HTTP_THREADS = 8  # beside those of requests in progress: for tokenizing, rendering, health checks


def die_with_parent() -> None:
    """Block until stdin ends, then leave without llama.cpp's destructors, which may hang at exit."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


def openable(path: str, links: str) -> str:
    """Return a path that llama.cpp can open: it takes UTF-8 alone. To any other, a link in the folder `links`."""
    try:
        path.encode()
    except UnicodeEncodeError:
        link = Path(tempfile.mkdtemp(dir=links)) / "model.gguf"
        link.symlink_to(path)
        return str(link)
    return path


def serve(settings: dict[str, Any], links: str) -> str:
    """Load the model and start the server; return its address. The server lives in a global on purpose.

    links: a folder that is needed until then."""
    import xllamacpp  # type: ignore[import-untyped]  # has no stubs

    params = xllamacpp.CommonParams()
    params.model.path = openable(settings["path"], links)
    params.model_alias = {settings["alias"]}
    params.api_keys = [settings["api_key"]]
    if hasattr(params, "hostnames"):
        params.hostnames = ["127.0.0.1"]
    else:  # before September 2026
        params.hostname = "127.0.0.1"
    params.port = 0
    params.n_ctx = settings["context"] * settings["slots"]
    params.cpuparams.n_threads = settings["threads"]
    params.n_parallel = settings["slots"]
    params.kv_unified = False
    # a request that waits for a slot holds one of these threads, and none may wait for a thread behind it
    params.n_threads_http = settings["slots"] + settings["waiting"] + HTTP_THREADS
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(openable(path, links)) for path in settings["adapters"]]
    if settings["use"] != "generate":
        params.embedding = True
        params.n_batch = params.n_ubatch = settings["context"]  # a text is read as a whole
    if settings["mean_pooling"]:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if settings["use"] == "rerank":
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    if settings["draft"]:
        draft, wanted = params.speculative.draft, settings["draft"]
        draft.mparams.path, draft.n_max, draft.p_min = openable(wanted["path"], links), wanted["tokens"], wanted["sure"]
        draft.cpuparams.n_threads = settings["threads"]
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    if settings["template"]:
        params.chat_template = settings["template"]
    elif settings["use"] != "generate":
        params.chat_template = "chatml"  # of llama.cpp: that of the file would be run for nothing
    params.warmup = False
    params.ui = False
    params.endpoint_slots = False
    params.offline = True
    params.check_tensors = True
    # The defaults fit a model to free GPU memory, and keep 8 GiB of old prompts in RAM.
    params.fit_params = False
    params.cache_ram_mib = settings["prompt_cache_mib"]
    params.n_ctx_checkpoints = 0
    globals()["server"] = xllamacpp.Server(params)
    address: str = globals()["server"].listening_address
    return address


def is_guided() -> bool:
    """Return whether this llama.cpp was built with llguidance."""
    import xllamacpp

    grammar: str = xllamacpp.json_schema_to_grammar('{"type": "object"}')
    return grammar.startswith("%llguidance")


def bound_memory(most: int) -> None:
    """Let an allocation beyond so many bytes fail. A driver of a GPU allocates more than it takes: no bound there."""
    import xllamacpp

    gpus = [device for device in xllamacpp.get_device_info() if "GPU" in device["type"].name]
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        if not gpus:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def main() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no copy of the conversations on disk
    # llama.cpp writes to stdout too, now and then: the answer has a channel of its own
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=die_with_parent, daemon=True).start()
    # settle's modules by their paths: importing the package takes memory and time of every child
    if settings["room"] is not None:
        runpy.run_path(str(MACHINE / "memory_room.py"))["keep_within"](settings["room"], settings["path"])
    if settings["memory"] is not None:
        bound_memory(settings["memory"])
    with tempfile.TemporaryDirectory(prefix="settle-") as links:
        address = serve(settings, links)
    # The server installs handlers that wait for its loops to end; a client in mid-stream would hold them up.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers.write(json.dumps({"address": address, "is_guided": is_guided()}) + "\n")
    answers.flush()
    runpy.run_path(str(MACHINE / "openmp_wait.py"))["adapt_waiting"](settings["threads"])
    threading.Event().wait()


if __name__ == "__main__":
    main()
