"""llama.cpp's quantizer in a process of its own. Run by `mixes.py`, never imported by it.

Reads one JSON object `{"source", "targets": {path: number of the mix}, "has_importance"}` on stdin, writes the targets,
and answers one JSON line: target → error, for those that llama.cpp refuses.
"""

import importlib
import json
import sys

ERROR = 4  # llama.cpp's level of a log line


def main(source: str, targets: dict[str, int], has_importance: bool) -> None:
    # the declarations come with the package, made from the header of the very library
    bindings = importlib.import_module("llama_cpp_py_sync._cffi_bindings")
    ffi, library = bindings.get_ffi(), bindings.get_lib()
    complaints: list[str] = []

    def on_log(level: int, text: object, _: object) -> None:
        if level == ERROR:
            complaints.append(ffi.string(text).decode("utf-8", "replace").strip())

    callback = ffi.callback("void(enum ggml_log_level, const char *, void *)", on_log)
    library.llama_log_set(callback, ffi.NULL)
    params = ffi.new("llama_model_quantize_params *", library.llama_model_quantize_default_params())
    params.nthread = 1
    if has_importance:
        # that there is one changes the types, what is in it does not: the entry is of no tensor
        name, values = ffi.new("char[]", b"none"), ffi.new("float[]", [1.0])
        entries = ffi.new("struct llama_model_imatrix_data[]", 2)
        entries[0].name, entries[0].data, entries[0].size = name, values, 1
        params.imatrix = entries
    errors = {}
    for target, number in targets.items():
        complaints.clear()
        params.ftype = number
        if library.llama_model_quantize(source.encode(), target.encode(), params):
            errors[target] = complaints[-1] if complaints else "it gives no reason"
    sys.stdout.write(json.dumps(errors) + "\n")


if __name__ == "__main__":
    main(**json.load(sys.stdin))
