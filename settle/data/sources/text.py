"""Plain text, prose and code: a file is a document, a very long one several."""

from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from settle.data.sources import Row, Source, cut, decoded


class Text(Source):
    """Any text file; a file of more than two million characters is cut at paragraphs."""

    suffixes: ClassVar[tuple[str, ...]] = (
        *(".txt", ".text", ".md", ".markdown", ".mdx", ".rst", ".org", ".tex", ".adoc", ".log", ".srt", ".vtt"),
        *(".py", ".pyi", ".pyx", ".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx", ".c", ".h", ".cc", ".cpp", ".cxx"),
        *(".hpp", ".hh", ".cu", ".cuh", ".java", ".kt", ".kts", ".scala", ".groovy", ".go", ".rs", ".rb", ".php"),
        *(".pl", ".pm", ".lua", ".r", ".jl", ".swift", ".m", ".mm", ".cs", ".fs", ".vb", ".hs", ".ml", ".mli"),
        *(".ex", ".exs", ".erl", ".clj", ".cljs", ".lisp", ".el", ".scm", ".rkt", ".sh", ".bash", ".zsh", ".fish"),
        *(".ps1", ".bat", ".sql", ".dart", ".zig", ".nim", ".v", ".sv", ".vhd", ".f", ".f90", ".pas", ".asm", ".s"),
        *(".css", ".scss", ".less", ".vue", ".svelte", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".cmake", ".proto"),
        *(".graphql", ".tf", ".nix", ".awk", ".diff", ".patch", ".bib", ".po"),
    )

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        for number, text in enumerate(cut(decoded(stream)), 1):
            yield {"text": text, "row": number}
