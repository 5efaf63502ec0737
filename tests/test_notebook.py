"""The notebook of the lab runs from top to bottom, with small settings, and shows what it promises."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "lab.ipynb"
_SMALL = {
    "width": 1 / 32,
    "budgets": (0.5,),
    "unlabelled": 48,
    "epochs": 1,
    "finetune_epochs": 1,
    "scan": (0.5, 0.9),
    "latency_batches": (1, 2),
    "progress": False,
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    if not NOTEBOOK.exists():
        pytest.skip("the notebook is part of the checkout, not of the installed package")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = f'data = "digits"\nchanges = {_SMALL!r}'
    folder = tmp_path_factory.mktemp("notebook")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert not list(folder.iterdir())
    return notebook


def _text(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.text for output in outputs if output.output_type == "stream")


def test_it_shows_the_tables_of_the_summary(executed: nbformat.NotebookNode) -> None:
    text = _text(executed)
    for part in ("## Accuracy", "| channels, sorted", "latency, batch of 2", "## Comparison", "- Proof: "):
        assert part in text
    assert "10 of 25 stay" in text
    assert "backbone.conv0" in text


def test_its_plots_are_drawn(executed: nbformat.NotebookNode) -> None:
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    pictures = [out for cell in cells for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 6


def test_nothing_of_a_machine_is_stored() -> None:
    if not NOTEBOOK.exists():
        pytest.skip("the notebook is part of the checkout, not of the installed package")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
