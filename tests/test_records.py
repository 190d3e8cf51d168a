"""Files of earlier versions, in which a field has another name, still load."""

import json
import shutil
from pathlib import Path

import pytest
from architectures import load, pairs
from safetensors.numpy import save_file

from circuitlab import FormatError, RunError, load_scores, reproduce, score_edges, score_nodes, select, sweep
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


class TestAblationOfScores:
    """Scores know their ablation, and a selection under another one says so."""

    @pytest.mark.parametrize(
        ("method", "ablation", "expected"),
        [
            ("eap", "zero", "zero"),
            ("eap", "corrupt", "corrupt"),
            ("eap-ig", "corrupt", "corrupt"),
            ("ifr", "corrupt", None),
        ],
    )
    def test_it_is_recorded(self, method, ablation, expected, tmp_path):
        scores = score_edges(load("gpt2"), pairs(), method, ablation=ablation)
        scores.save(tmp_path / "scores.safetensors")
        assert scores.to_record()["ablation"] == load_scores(tmp_path / "scores.safetensors").ablation == expected

    def test_of_nodes_too(self):
        assert score_nodes(load("gpt2"), pairs(), "eap", ablation="zero").to_record()["ablation"] == "zero"

    def test_of_a_function_of_the_user(self):
        def ours(model, batch, metric):
            return score_edges(model, batch, "eap", metric=metric).values

        assert score_edges(load("gpt2"), pairs(), ours).ablation == "corrupt"

    @pytest.mark.parametrize("scored", ["zero", "corrupt"])
    @pytest.mark.parametrize("selected", ["zero", "corrupt"])
    def test_a_selection_under_another_says_so(self, scored, selected):
        model = load("gpt2")
        scores = score_edges(model, pairs(), "eap", ablation=scored)
        circuit = select(model, scores, pairs(), 0.5, ablation=selected, allow_weak_gap=True)
        assert circuit.selection
        said = [text for text in circuit.selection.warnings if "scored under" in text]
        expected = f"scored under ablation {scored} and selected under ablation {selected}"
        assert len(said) == (scored != selected)
        assert all(expected in text for text in said)
        assert (expected in repr(circuit).replace("\n", " ")) is bool(said)

    def test_a_number_of_edges_asks_for_no_ablation(self):
        model = load("gpt2")
        scores = score_edges(model, pairs(), "eap", ablation="zero")
        assert not select(model, scores, pairs(), n_edges=20).selection.warnings


EARLIER = Path(__file__).parent / "fixtures" / "earlier-run"


@pytest.mark.parametrize(
    ("setting", "given", "guess"),
    [
        ("method", "eap-if", " (did you mean 'eap-ig'?)"),
        ("sites", ["head_x"], " (did you mean 'head_z'?)"),
        ("method", "completely-other", ""),
    ],
)
def test_a_misspelt_name_in_a_manifest_is_told_with_both_possibilities(setting, given, guess, tmp_path):
    folder = shutil.copytree(EARLIER, tmp_path / "run")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"][setting] = given
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError) as caught:
        reproduce(folder)
    assert "is of a package that is not installed, or cannot be imported, or it is misspelt in manifest.json" in str(
        caught.value
    )
    assert f"misspelt in manifest.json{guess}. Install the package" in str(caught.value)
