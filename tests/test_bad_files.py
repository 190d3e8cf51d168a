"""Files that users name, for every reader: refused in one message before they cost time or memory, or read right."""

import gzip
import io
import json
import math
import os
import re
import resource
import zipfile
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from layouts import spec_of
from safetensors.torch import save_file

from circuitlab import (
    CircuitLabError,
    FileError,
    FormatError,
    MissingFileError,
    RunError,
    cite,
    load_autoencoder,
    load_circuit,
    write_report,
)
from circuitlab.cli.texts import text_of
from circuitlab.features import load_descriptions
from circuitlab.files import MOST_LEVELS, MOST_TEXT, parse_json, read_bytes, read_text
from circuitlab.graphs.circuit import Circuit
from circuitlab.graphs.prune import real_edges
from circuitlab.neurons.corpus import read_corpus
from circuitlab.outputs.records import State, save_state
from circuitlab.outputs.whole import write_bytes
from circuitlab.parts import Layout
from circuitlab.patching.sweeps.run import DONE, Checkpoint

SPEC = spec_of(2, 2)
MASK = real_edges(Layout.of(SPEC))
CIRCUIT = Circuit(spec=SPEC, mask=MASK, scores=MASK * 0.5)


def resumed(path):
    table = np.zeros((2, 3))
    found = Checkpoint(path=Path(path), key="k", tables={"t": table}, budget=8)
    found.load()
    return found


def from_folder(read, name):
    """A reader of a folder that holds the file under its own name."""

    def call(path):
        folder = Path(path).parent / "folder"
        folder.mkdir()
        (folder / name).symlink_to(path)
        return read(folder)

    return call


READERS = {
    "circuit.json": lambda path: load_circuit(path, SPEC),
    "circuit.pt": lambda path: load_circuit(path, SPEC),
    "circuit.graphml": lambda path: load_circuit(path, SPEC),
    "circuit.txt": lambda path: load_circuit(path, SPEC),
    "params.npz": lambda path: load_autoencoder(path, site="resid_post", layer=0),
    "cfg.json": from_folder(load_autoencoder, "cfg.json"),
    "words.json": load_descriptions,
    "words.jsonl": load_descriptions,
    "words.json.gz": load_descriptions,
    "text.txt": lambda path: text_of(None, str(path)),
    "corpus.txt": lambda path: [one.text[:9] for one in islice(read_corpus(path), 1)],
    "corpus.jsonl": lambda path: list(read_corpus(path)),
    "resume.safetensors": resumed,
    "manifest.json": from_folder(write_report, "manifest.json"),
    "cited/manifest.json": from_folder(lambda folder: cite(str(folder)), "manifest.json"),
}
JSON = [name for name in READERS if ".json" in name and not name.endswith(".gz")]


@pytest.fixture
def bounded():
    """No more than a gigabyte beyond what the process has: what asks for more fails here, and not the machine."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def placed(tmp_path, name) -> Path:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    return path


def refused(name, path) -> str:
    with pytest.raises(CircuitLabError) as told:
        READERS[name](path)
    message = str(told.value)
    assert len(message) < 700
    assert message.count("\n") == 0
    assert Path(path).name in message or "folder" in message
    return message


@pytest.mark.parametrize("name", READERS)
class TestEveryReader:
    def test_only_regular_files_are_read(self, name, tmp_path):
        path = placed(tmp_path, name)
        path.symlink_to("/dev/zero")
        assert re.search("only regular files are read|is a symbolic link", refused(name, path))

    def test_a_pipe_does_not_block(self, name, tmp_path):
        os.mkfifo(placed(tmp_path, name))
        assert re.search("only regular files are read|is a symbolic link", refused(name, tmp_path / name))

    def test_a_circle_of_links(self, name, tmp_path):
        path = placed(tmp_path, name)
        path.symlink_to(path)
        refused(name, path)

    def test_a_file_of_a_terabyte(self, name, tmp_path, bounded):
        path = placed(tmp_path, name)
        with path.open("wb") as file:
            file.truncate(2**40)
        if name != "corpus.txt":  # read piece by piece: a piece of zeros is a text
            refused(name, path)

    @pytest.mark.parametrize(
        "content", [b"", b"\xff\xfe\xfd", Random(0).randbytes(3000)], ids=["empty", "odd", "random"]
    )
    def test_no_content_of_its_format(self, name, content, tmp_path):
        path = placed(tmp_path, name)
        path.write_bytes(content)
        if content or name not in ("corpus.txt", "corpus.jsonl", "circuit.txt"):  # which may hold nothing
            refused(name, path)


@pytest.mark.parametrize("name", JSON)
class TestEveryReaderOfJson:
    def test_nested_too_deep(self, name, tmp_path):
        for depth in (MOST_LEVELS + 2, 900, 100_000):
            folder = tmp_path / str(depth)
            folder.mkdir()
            path = placed(folder, name)
            path.write_text("[" * depth + "]" * depth)
            refused(name, path)

    def test_a_key_given_twice(self, name, tmp_path):
        path = placed(tmp_path, name)
        path.write_text('{"text": "a", "text": "b"}')
        assert re.search("'text' twice|is a symbolic link", refused(name, path))

    def test_an_integer_of_many_digits_and_half_a_character(self, name, tmp_path):
        for number, text in enumerate(('{"a": ' + "9" * 5000 + "}", '{"a": "\\ud800"}')):
            folder = tmp_path / str(number)
            folder.mkdir()
            path = placed(folder, name)
            path.write_text(text)
            refused(name, path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_read(encoding, tmp_path):
    def written(name, text):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    if encoding in ("utf-16", "utf-32"):
        assert written("x", "a").read_bytes()[:2] == b"\xff\xfe"
    CIRCUIT.save(tmp_path / "c.json")
    CIRCUIT.save(tmp_path / "c.graphml")
    CIRCUIT.save(tmp_path / "c.txt")
    for name in ("c.json", "c.graphml", "c.txt"):
        back = load_circuit(written(f"marked-{name}", (tmp_path / name).read_text()), SPEC)
        assert (back.mask == CIRCUIT.mask).all()
    assert text_of(None, str(written("t.txt", "Anna"))) == "Anna"
    assert [one.text for one in read_corpus(written("t.txt", "Anna\nBo"))] == ["Anna", "Bo"]
    assert [one.text for one in read_corpus(written("t.jsonl", '{"text": "Anna"}\n'))] == ["Anna"]
    assert load_descriptions(written("d.json", '[{"index": 1, "description": "names"}]')).of(1) == "names"


class TestBombs:
    def test_gzip(self, tmp_path, bounded):
        path = tmp_path / "d.json.gz"
        path.write_bytes(gzip.compress(b" " * 2**24) * (MOST_TEXT // 2**24 + 2))
        assert path.stat().st_size < 2**20
        with pytest.raises(FileError, match="holds more than 268,435,456 bytes"):
            load_descriptions(path)

    @pytest.mark.parametrize("honest", [True, False])
    def test_npz(self, honest, tmp_path, bounded):
        """Of an archive that says what it unpacks to, and of a header that claims more than there is."""
        path, header = tmp_path / "params.npz", io.BytesIO()
        shape = (2**5 if honest else 2**20, 2**20)
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("w_enc.npy", "w") as file:
            file.write(header.getvalue())
            for _ in range(2**3 if honest else 1):
                file.write(bytes(2**24))
        with pytest.raises(CircuitLabError, match="unpacks to 134,217,8" if honest else "damaged: w_enc has the shape"):
            load_autoencoder(path, site="resid_post", layer=0)

    def test_tensors(self, tmp_path, bounded):
        CIRCUIT.save(tmp_path / "c.pt")
        with (
            zipfile.ZipFile(tmp_path / "c.pt") as whole,
            zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
        ):
            for name in whole.namelist():
                with bomb.open(name, "w") as file:
                    file.write(whole.read(name))
                    for _ in range(5 if "/data/" in name else 0):
                        file.write(bytes(2**24))
        with pytest.raises(FileError, match="unpacks to"):
            load_circuit(tmp_path / "b.pt")

    def test_entities(self, tmp_path):
        levels = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
        (tmp_path / "c.graphml").write_text(f'<!DOCTYPE x [<!ENTITY a0 "a">{levels}]><graphml>&a11;</graphml>')
        with pytest.raises(FormatError, match="declares a document type"):
            load_circuit(tmp_path / "c.graphml", SPEC)

    def test_neurons_of_a_width_that_the_file_only_claims(self, tmp_path, bounded):
        nodes = {"m0": {"in_graph": True, "neurons": [True]}}
        cfg = {"n_layers": 100, "n_heads": 10, "d_model": 10**8, "parallel_attn_mlp": False}
        (tmp_path / "c.json").write_text(json.dumps({"cfg": cfg, "nodes": nodes, "edges": {}}))
        with pytest.raises(FormatError, match="has 1 neurons; d_model is 100000000"):
            load_circuit(tmp_path / "c.json")


CFG = {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": SPEC.d_model}
OLD = {
    "nodes that are booleans": {"nodes": {"input": True, "m0": True, "logits": True}},
    "no d_model": {"cfg": {k: v for k, v in CFG.items() if k != "d_model"}, "nodes": {"m0": True}},
    "n_pos": {"n_pos": None, "nodes": {"m0": True}},
    "edges without scores": {"edges": {"input->m0": {"in_graph": True}, "m0->logits": {"in_graph": True}}},
    "edges that are booleans": {"edges": {"input->m0": True, "m0->logits": True, "m0->m1": False}},
    "neurons beside the nodes": {"nodes": {"m0": True}, "neurons": {"m0": [True] * SPEC.d_model}},
}


class TestOlderFiles:
    @pytest.mark.parametrize("with_spec", [True, False])
    @pytest.mark.parametrize("old", OLD)
    def test_they_are_read(self, old, with_spec, tmp_path):
        edges = {"input->m0": {"score": 1.0, "in_graph": True}, "m0->logits": {"score": 2.0, "in_graph": True}}
        whole = {"cfg": CFG, "nodes": {"m0": {"in_graph": True}, "m1": {"in_graph": False}}, "edges": edges}
        (tmp_path / "c.json").write_text(json.dumps(whole | OLD[old]))
        found = load_circuit(tmp_path / "c.json", SPEC if with_spec else None)
        assert [edge.name for edge, _ in found.edges()] == ["input->m0", "m0->logits"]
        expected = [math.nan] * 2 if "edges" in OLD[old] else [1.0, 2.0]
        assert [score for _, score in found.edges()] == pytest.approx(expected, nan_ok=True)
        assert (found.node_parts.neurons is not None) == ("neurons" in OLD[old])
        found.save(tmp_path / "again.json")
        again = load_circuit(tmp_path / "again.json")
        assert (again.mask == found.mask).all()

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"n_pos": 7}, "graph by position"),
            ({"edges": {"m0->m1": 0.5}}, "edges.m0->m1"),
            ({"edges": {"m0->m1": {"score": 0.5}}}, "in_graph: Field required"),
            ({"neurons": {"m7": [True]}}, "neurons names 'm7'"),
            ({"nodes": {"m0": 1}}, "nodes.m0"),
        ],
    )
    def test_what_can_be_read_in_two_ways_is_refused(self, change, says, tmp_path):
        (tmp_path / "c.json").write_text(json.dumps({"cfg": CFG, "nodes": {"m0": True}, "edges": {}} | change))
        with pytest.raises(FormatError, match=says):
            load_circuit(tmp_path / "c.json")


class TestGraphs:
    @pytest.mark.parametrize("score", ["high", True, None, [1], {"a": 1}, 10**400, math.inf], ids=str)
    def test_scores_that_are_no_numbers(self, score, tmp_path):
        edge = {"source": "m0", "target": "logits", "key": "m0->logits", "slot": "", "score": score}
        nodes = [{"id": "m0"}, {"id": "logits"}]
        (tmp_path / "c.json").write_text(json.dumps({"nodes": nodes, "edges": [edge]}))
        with pytest.raises(FormatError, match="c.json.*(score|number|finite)"):
            load_circuit(tmp_path / "c.json", SPEC)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('target="logits" id="m0-&gt;logits"', 'target="m1" id="m0-&gt;logits"'),
            ('source="m0" target="logits"', 'source="m1" target="logits"'),
            ('id="m0-&gt;logits"', 'id="m1-&gt;logits"'),
        ],
    )
    def test_ends_that_contradict_the_key(self, old, new, tmp_path):
        CIRCUIT.save(tmp_path / "c.graphml")
        text = (tmp_path / "c.graphml").read_text()
        assert old in text
        (tmp_path / "c.graphml").write_text(text.replace(old, new))
        with pytest.raises(FormatError, match="which is another edge"):
            load_circuit(tmp_path / "c.graphml", SPEC)

    def test_a_slot_that_contradicts_the_key(self, tmp_path):
        edge = {"source": "m0", "target": "a1.h0", "key": "m0->a1.h0<q>", "slot": "k", "score": 1.0}
        nodes = [{"id": "m0"}, {"id": "a1.h0"}]
        (tmp_path / "c.json").write_text(json.dumps({"nodes": nodes, "edges": [edge]}))
        with pytest.raises(FormatError, match="slot 'k'"):
            load_circuit(tmp_path / "c.json", SPEC)


class TestTensors:
    @pytest.mark.parametrize(
        "change",
        [
            lambda scores: scores.to_sparse(),
            lambda scores: scores.to(torch.complex64),
            lambda scores: scores.to("meta"),
            lambda scores: torch.quantize_per_tensor(scores.float(), 0.1, 0, torch.qint8),
            lambda scores: scores[:-1],
            lambda scores: scores.tolist(),
            lambda scores: scores > 0,
        ],
    )
    def test_scores_that_are_no_plain_tensor(self, change, tmp_path):
        CIRCUIT.save(tmp_path / "c.pt")
        content = torch.load(tmp_path / "c.pt")
        torch.save(content | {"edges_scores": change(content["edges_scores"])}, tmp_path / "c.pt")
        with pytest.raises(FormatError, match="c.pt"):
            load_circuit(tmp_path / "c.pt")

    @pytest.mark.parametrize(
        "change", [lambda scores: scores.requires_grad_(), lambda scores: torch.nn.Parameter(scores), torch.Tensor.half]
    )
    def test_scores_of_a_training_are_read(self, change, tmp_path):
        CIRCUIT.save(tmp_path / "c.pt")
        content = torch.load(tmp_path / "c.pt")
        torch.save(content | {"edges_scores": change(content["edges_scores"])}, tmp_path / "c.pt")
        assert np.array_equal(load_circuit(tmp_path / "c.pt").scores, CIRCUIT.scores)


class TestResuming:
    def kept(self, path, **change):
        arrays = {"t": np.ones((2, 3)), DONE: np.array([0])} | change
        save_state(path, State(job="sweep", key="k", numbers={"budget": 8}, arrays=arrays))
        return path

    def test_it_is_read(self, tmp_path):
        found = resumed(self.kept(tmp_path / "r.safetensors"))
        assert (found.tables["t"] == 1).all()
        assert found.done == {0}

    @pytest.mark.parametrize(
        "change", [{"t": np.ones(3)}, {"t": np.ones((2, 3), dtype=np.int8)}, {DONE: np.array([0.5])}]
    )
    def test_arrays_of_another_kind_are_refused_and_nothing_is_taken_over(self, change, tmp_path):
        table = np.zeros((2, 3))
        found = Checkpoint(path=self.kept(tmp_path / "r", **change), key="k", tables={"t": table}, budget=8)
        with pytest.raises(RunError, match="cannot be read as the rest of a sweep"):
            found.load()
        assert (table == 0).all()

    def test_a_file_of_an_earlier_version_or_of_another_job_is_refused_in_one_line(self, tmp_path):
        old, other = tmp_path / "old.safetensors", tmp_path / "other.safetensors"
        save_file({"t": torch.ones(2, 3), "done": torch.tensor([0])}, old, metadata={"key": "k", "budget": "8"})
        with pytest.raises(RunError, match="cannot be read as the rest of a sweep: it has the schema None") as told:
            resumed(old)
        assert "\n" not in str(told.value)
        save_state(other, State(job="training", key="k", numbers={}, arrays={}))
        with pytest.raises(RunError, match="keeps another sweep"):
            resumed(other)

    def test_a_disk_without_room(self, tmp_path, monkeypatch):
        def full(*_given):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        found = Checkpoint(path=tmp_path / "r", key="k", tables={"t": np.zeros(2)}, budget=8)
        with pytest.raises(FileError, match=r"file to resume from .* cannot be written: No space left on device"):
            found.finish(0)
        with pytest.raises(FileError, match="page .* cannot be written: No space left"):
            write_bytes(tmp_path / "p.html", b"x", "page")
        with pytest.raises(FileError, match="circuit file .* cannot be written: No space left"):
            CIRCUIT.save(tmp_path / "c.pt")
        assert not list(tmp_path.iterdir())


class TestGround:
    def test_a_missing_file_is_also_a_file_not_found_error(self, tmp_path):
        with pytest.raises(FileNotFoundError) as told:
            load_circuit(tmp_path / "none.json")
        assert isinstance(told.value, MissingFileError)

    def test_a_path_with_a_zero(self):
        with pytest.raises(FileError, match="cannot be read"):
            read_text(Path("a\0b"), "file")

    def test_the_most_that_is_read(self, tmp_path):
        (tmp_path / "a").write_bytes(b"12345")
        assert read_bytes(tmp_path / "a", "file", most=5) == b"12345"
        with pytest.raises(FileError, match="at most 4 are read"):
            read_bytes(tmp_path / "a", "file", most=4)

    def test_levels_and_constants(self):
        deep = "[" * MOST_LEVELS + "]" * MOST_LEVELS
        assert parse_json(deep, "it") is not None
        with pytest.raises(FormatError, match="nested more than"):
            parse_json(f"[{deep}]", "it")
        assert parse_json("[NaN, -Infinity]", "it")[1] == -math.inf
        assert parse_json('"\\ud83d\\ude00"', "it") == "\N{GRINNING FACE}"
