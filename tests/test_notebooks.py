"""The notebooks run on the shipped organisms, with no network, and stay short and stripped."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))

# Jupyter's own channels are C sockets, out of reach of this; Python code cannot connect.
NO_NETWORK = """
import os, socket
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
def _refuse(*args, **kwargs):
    raise OSError("the notebook tried to reach the network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = _refuse
"""


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_stripped_and_short(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown"
    assert len(code) <= 12
    for cell in code:
        assert not cell.outputs
        assert cell.execution_count is None
        assert len(cell.source.splitlines()) <= 10
        assert not re.search(r"^\s*def ", cell.source, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_offline(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    guard = nbformat.v4.new_code_cell(NO_NETWORK)
    notebook.cells.insert(0, guard)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("text/html" in out.get("data", {}) for out in outputs)


@pytest.mark.slow
def test_the_guard_against_the_network_works(tmp_path):
    cells = [NO_NETWORK, "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    with pytest.raises(Exception, match="tried to reach the network"):
        NotebookClient(notebook, timeout=60).execute()
