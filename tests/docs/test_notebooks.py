"""The notebooks: each runs to its end on the embedded default, without a warning, and is stored with its outputs."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="no nbclient: pip install 'clipcap-toolkit[dev]'")
pytest.importorskip("ipykernel", reason="no ipykernel: pip install 'clipcap-toolkit[dev]'")
import nbformat

REPO = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
MAX_LINES, MAX_CELL = 60, 20  # of code: what is longer belongs into the package
LOCAL = re.compile(r"(?<![\w.])/(?:work|root|home|tmp|Users|mnt)/")

spec = importlib.util.spec_from_file_location("execute", REPO / "notebooks" / "execute.py")
execute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def stored(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell) -> list[str]:
    """What a cell shows: the streams it writes to, the formats of what it displays."""
    return [output.get("name") or ", ".join(sorted(output.data)) for output in cell.outputs]


def on_fewer_plates(path, folder) -> Path:
    """A copy with a quarter of the plates where there are hundreds: what is checked of it depends on no number."""
    if path.stem == "finetune_on_food":  # its training warns of a set that is too small
        return path
    copy = folder / path.name
    text = path.read_text(encoding="utf-8")
    copy.write_text(re.sub(r"count=(\d{3})", lambda m: f"count={int(m[1]) // 4}", text), encoding="utf-8")
    return copy


def test_a_notebook_runs_on_the_embedded_default_and_shows_what_is_stored(path, stored, tmp_path):
    (folder := tmp_path / "run").mkdir()
    notebook = execute.executed(on_fewer_plates(path, tmp_path), folder)
    assert execute.warnings(notebook) == []
    execute.normalised(notebook, folder)
    assert [kinds(cell) for cell in code_cells(notebook)] == [kinds(cell) for cell in code_cells(stored)]


def test_outputs_are_stored_without_errors_and_without_places_on_a_machine(stored):
    outputs = execute.outputs(stored)
    assert len(outputs) >= 5
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [text for text in map(str, outputs) if LOCAL.search(text)]
    numbers = [cell.execution_count for cell in code_cells(stored)]
    assert numbers == list(range(1, len(numbers) + 1))  # run once, from top to bottom


def test_the_code_is_short_and_its_first_cell_has_a_switch_to_real_data(stored):
    sources = [cell.source for cell in code_cells(stored)]
    lines = [len([line for line in source.splitlines() if line.strip()]) for source in sources]
    assert max(lines[1:]) <= MAX_CELL and sum(lines) <= MAX_LINES
    tree = ast.parse(sources[0])
    [switch] = [node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "REAL"]
    assert switch.value.value is False
    [both] = [node for node in tree.body if isinstance(node, ast.If) and node.test.id == "REAL"]
    real, drawn = names_set(both.body), names_set(both.orelse)
    assert real and real <= drawn  # what follows needs, and runs with, either


def names_set(branch: list[ast.stmt]) -> set[str]:
    names = [node for statement in branch for node in ast.walk(statement) if isinstance(node, ast.Name)]
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}
