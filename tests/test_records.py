"""Files of earlier versions, in which a field has another name, still load."""

import json

import pytest
from architectures import load, pairs
from safetensors.numpy import save_file

from circuitlab import FormatError, sweep
from circuitlab.outputs.records import RECORD, load_record, read_arrays, save_record
from circuitlab.patching.grid import Grid


@pytest.fixture(scope="module")
def grid() -> Grid:
    found = sweep(load("gpt2"), pairs(), "mlp_out", ablation="zero")
    assert isinstance(found, Grid)
    return found


def with_names(grid: Grid, path, **names: str) -> Grid:
    """The grid written, with other names of its fields in the file, and read again."""
    save_record(path, grid, "grid/1", "grid")
    content, arrays = read_arrays(path, "grid")
    record = {names.get(name, name): value for name, value in content[RECORD].items()}
    record |= {"replacement": "zero"} if "both" in names else {}
    save_file(
        {name: values.copy() for name, values in arrays.items()}, path, {RECORD: json.dumps(content | {RECORD: record})}
    )
    return load_record(path, Grid, ("grid/1",), "grid")


def test_the_record_of_a_grid_has_its_ablation(grid):
    record = grid.to_record()
    assert record["ablation"] == "zero"
    assert "replacement" not in record


@pytest.mark.parametrize("names", [{}, {"ablation": "replacement"}])
def test_a_file_with_either_name_loads(grid, names, tmp_path):
    found = with_names(grid, tmp_path / "grid.safetensors", **names)
    assert found.ablation == "zero"
    assert (found.per_example == grid.per_example).all()


@pytest.mark.parametrize("names", [{"ablation": "ablated"}, {"both": ""}])
def test_another_name_or_both_names_are_refused(grid, names, tmp_path):
    with pytest.raises(FormatError, match="ablat|replacement"):
        with_names(grid, tmp_path / "grid.safetensors", **names)


def test_the_former_attribute_says_so(grid):
    with pytest.warns(FutureWarning, match="Grid.replacement is now called Grid.ablation"):
        assert grid.replacement == "zero"
