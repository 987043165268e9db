"""Every notebook runs from top to bottom."""

from pathlib import Path

import jupytext
import nbclient
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"


@pytest.mark.filterwarnings("default")  # of the notebook machinery's own
@pytest.mark.parametrize("source", sorted(FOLDER.glob("*.py")), ids=lambda source: source.stem)
def test_notebook_runs(source: Path) -> None:
    notebook = jupytext.read(source)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    ).execute()
    printed = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any(output.output_type == "display_data" for output in printed), "a notebook shows at least one picture"
