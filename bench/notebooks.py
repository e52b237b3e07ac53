"""Run the notebooks anew and store what their cells show.

    python bench/notebooks.py [NAME ...]

It takes smollm2 and minilm from SETTLE_HOME (`settle pull` gets them), and leaves the runs there. tests/test_notebooks
runs the same cells with other parameters: a tiny model and few steps.
"""

import argparse
import json
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]


def run(name: str, parameters: str | None = None) -> NotebookNode:
    """Return a notebook with what its cells show now. parameters: code in place of the cell tagged so."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source = parameters or cell.source
    client = NotebookClient(notebook, timeout=3600, record_timing=False, coalesce_streams=True)
    return client.execute(cwd=str(FOLDER))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    home = os.environ.get("SETTLE_HOME", "~/.settle")
    for name in parser.parse_args().names:
        notebook = run(name)
        notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        shown = text.replace(home, "~/.settle").replace(str(FOLDER.parent), "~/settle")
        (FOLDER / f"{name}.ipynb").write_text(shown, encoding="utf-8")
        print(f"{name}: {len(shown) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
