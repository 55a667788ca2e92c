"""Executes the notebooks again and saves them: `python notebooks/execute.py [NAME.ipynb …]`.

Each runs in an empty temporary folder. What differs from run to run for no reason is left out of the saved file:
times, versions, progress bars (all that goes to stderr), places on this machine, and of a picture the PNG where there
is a JPEG. A warning or an error ends the run, and the file stays as it was.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
TIMEOUT_S = 600  # of a cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path, folder: Path) -> NotebookNode:
    """A notebook with fresh outputs, run in a kernel of its own whose current folder is `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    quiet = ["--log-level=ERROR"]  # the kernel warns that it is reached by TCP
    return NotebookClient(
        notebook, timeout=TIMEOUT_S, resources=resources, record_timing=False, extra_arguments=quiet
    ).execute()


def warnings(notebook: NotebookNode) -> list[str]:
    """Lines on stderr that warn."""
    lines = "".join(output.text for output in outputs(notebook) if output.get("name") == "stderr").splitlines()
    return [line for line in lines if re.search("warning", line, re.IGNORECASE)]


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    """The outputs of all cells."""
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def normalised(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """The notebook without what changes from run to run or weighs too much; changed in place.

    Paths in `folder`, where it was run, become relative to it.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = _joined(output for output in cell.outputs if output.get("name") != "stderr")
            for output in cell.outputs:
                data = output.get("data", {})
                if "image/jpeg" in data:
                    data.pop("image/png", None)
                for kind in data:
                    if isinstance(data[kind], str):
                        data[kind] = data[kind].replace(f"{folder}/", "")
    return notebook


def _joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Outputs with what was printed at a stretch in one piece; how it comes in pieces is chance."""
    found: list[NotebookNode] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def main(names: list[str]) -> None:
    """Execute the notebooks of these names, or all."""
    for path in [Path(name) for name in names] or NOTEBOOKS:
        with TemporaryDirectory() as folder:
            notebook = executed(path, Path(folder))
            if found := warnings(notebook):
                sys.exit(f"{path.name} warns and was not saved: {found[0]}")
            nbformat.write(normalised(notebook, Path(folder)), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
