"""The report: everything in it comes from the run folder, is escaped, and is the same every time."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup
from test_viz import random_circuit, sweep_frame

from circuitlab.errors import FormatError, RunError
from circuitlab.parts import Layout, ModelSpec
from circuitlab.report import write_report
from circuitlab.report.folder import Repeated, read_run
from circuitlab.report.pages import page as whole_page
from circuitlab.report.pictures import bitmap, checked_png, drawing
from circuitlab.report.prompts import shown_pair
from circuitlab.report.render import NONE, asset, interval, number, percent, render, significant
from circuitlab.report.values import caveats, headline, random_sentence
from circuitlab.summary import plural
from circuitlab.viz import draw_circuit, figure_bytes, grid_from_frame, heatmap, plot, save_figure

SCRIPT = asset("attention.js")
SPEC = ModelSpec(name="bundled", n_layers=4, n_heads=8, n_kv_heads=8, d_model=128, d_head=16, d_vocab=999, n_ctx=99)
NASTY = "<script>alert('x')</script>"
CLEAN = ("<|endoftext|>", "<", "table", "><", "tr", "><", "th", ">", "Model", " name", "</")
CORRUPT = ("<|endoftext|>", "<", "table", "><", "tr", "><", "td", ">", "Model", " name", "</")


def write_run(folder: Path) -> Path:
    """A run folder as `discover` leaves it, with a random circuit and prompts full of HTML."""
    (folder / "sweeps").mkdir(parents=True)
    nodes, edges = random_circuit(SPEC.n_layers, SPEC.n_heads, 45)
    _write_circuit(folder, nodes, edges)
    _write_pairs(folder)
    tables = {
        "resid_pre": {"position": range(len(CLEAN)), "label": [t if i != 6 else "tag" for i, t in enumerate(CLEAN)]},
        "attn_out": {"span": ["outermost", "enclosing", "tag", "text", "close"]},
        "head_z": {"head": range(8)},
    }
    for seed, (site, columns) in enumerate(tables.items()):
        frame = sweep_frame(4, columns, seed, site)
        frame.to_csv(folder / "sweeps" / f"{site}.csv", index=False)
        save_figure(heatmap(grid_from_frame(frame)), folder / "sweeps" / f"{site}.png")
    save_figure(draw_circuit(nodes, edges), folder / "circuit.svg")
    _write_json(folder / "evaluation.json", _evaluation(len(edges)))
    hashes = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    _write_json(folder / "manifest.json", {**_manifest(), "files": hashes})
    return folder


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _write_circuit(folder: Path, nodes: list, edges: list) -> None:
    layout = Layout.of(SPEC)
    kept = {edge.name: edge.score for edge in edges}
    effects = {node.name: node.sweep_effect for node in nodes}
    rng = np.random.default_rng(1)
    scores = {edge.name: kept.get(edge.name, float(rng.normal()) * 1e-3) for edge in layout.edges()}
    cfg = {"n_layers": 4, "n_heads": 8, "parallel_attn_mlp": False, "d_model": 128}
    circuit = {
        "cfg": cfg,
        "nodes": {
            node.name: {
                "in_graph": node.name in effects,
                **({} if effects.get(node.name) is None else {"sweep_effect": effects[node.name]}),
            }
            for node in layout.nodes
        },
        "edges": {name: {"score": score, "in_graph": name in kept} for name, score in scores.items()},
    }
    _write_json(folder / "circuit.json", circuit)
    data = "".join(
        f'<node id="{name}"><data key="d3">{effect}</data></node>'
        for name, effect in effects.items()
        if effect is not None
    )
    key = '<key id="d3" for="node" attr.name="sweep_effect" attr.type="double"/>'
    graphml = f'<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{key}<graph>{data}</graph></graphml>'
    (folder / "circuit.graphml").write_text(graphml, encoding="utf-8")
    rows = [(*name.split("->"), score, name in kept) for name, score in scores.items()]
    pd.DataFrame(rows, columns=["source", "target", "score", "in_circuit"]).to_csv(folder / "edges.csv", index=False)


def _write_pairs(folder: Path) -> None:
    lines = []
    for i in range(12):
        pair = {
            "id": f"p{i}",
            "split": "discovery" if i < 6 else "held_out",
            "clean": f"<table><tr><th>Model name {i}</",
            "corrupt": f"<table><tr><td>Model name {i}</",
            "answers": ["th"],
            "distractors": ["td"],
            "spans": {"outermost": [2, 3], "tag": [6, 7], "text": [8, 10]},
        }
        if i == 1:
            pair |= {"clean": f"{NASTY} & <b>one</", "corrupt": f"{NASTY} & <i>two more</"}
        else:
            pair |= {"clean_tokens": list(CLEAN), "corrupt_tokens": list(CORRUPT)}
        lines.append(json.dumps(pair))
    (folder / "dataset.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _evaluation(n_edges: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    sizes = (1, 3, 7, 15, 30, 76, 151, 303, 759, 1519)
    return {
        "metric_clean": 6.214,
        "metric_corrupt": -5.871,
        "metric_circuit": 5.402,
        "metric_gap": 12.085,
        "metric_gap_se": 0.1734,
        "faithfulness": 0.9328,
        "faithfulness_ci": [0.8812, 0.9713],
        "n_edges": n_edges,
        "n_edges_total": Layout.of(SPEC).n_edges,
        "n_nodes": 30,
        "accuracy_model": 1.0,
        "accuracy_circuit": 0.98,
        "kl": 0.2143,
        "cpr": 0.951,
        "cmd": 0.049,
        "curve": [{"n_edges": n, "faithfulness": 1 / (1 + np.exp(-1.5 * (np.log(n) - 3)))} for n in sizes],
        "random_baseline": {"faithfulness": [float(v) for v in 0.04 + 0.06 * rng.normal(size=20)]},
    }


def _manifest() -> dict[str, object]:
    return {
        "schema": "circuitlab.run/1",
        "circuitlab_version": "0.1.0",
        "command": ["circuitlab", "discover", "html-tag-closing", "-n", "100"],
        "config": {
            "task": "html-tag-closing", "model": "bundled", "method": "eap-ig", "steps": 5, "metric": "logit_diff",
            "n": 6, "seed": 0, "target": 0.9,
        },
        "task": {
            "name": "html-tag-closing", "version": "1.0.0", "label": "html-tag-closing",
            "summary": "Close the innermost HTML tag that is still open, such as <b>.", "fingerprint": "ab" * 32,
            "settings": {"distractor": "other"},
        },
        "dataset": {
            "fingerprint": "cd" * 32, "n_discovery": 6, "n_held_out": 6, "dropped": {"'h1' is not one token": 3},
        },
        "model": {"id": "bundled", "weights_sha256": "ef" * 32, "n_layers": 4, "n_heads": 8, "d_model": 128},
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "device": "cpu",
        "dtype": "float32",
        "seconds": {"sweep": 10.2, "score": 1.3, "evaluate": 20.0},
        "bibtex": "@software{circuitlab,\n  title = {{circuitlab}}\n}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run folder with its report; for reading only."""
    folder = write_run(tmp_path_factory.mktemp("run") / "tag run")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(whole) -> str:
    return (whole / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def bare(whole, tmp_path) -> Path:
    """A run folder without report that a test may change."""
    return shutil.copytree(whole, tmp_path / "tag run", ignore=shutil.ignore_patterns("report.html"))


def forget_hashes(folder: Path) -> None:
    """Let files be changed without the manifest telling."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    _write_json(folder / "manifest.json", {**manifest, "files": {}})


class Reader(HTMLParser):
    """What a browser would make of a page: elements, attributes and text."""

    EMPTY = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.misnested: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data):
        self.text.append(data)


class TestPage:
    def test_it_is_well_formed_and_needs_nothing_from_outside(self, page):
        read = Reader(page)
        assert read.open == []
        assert read.misnested == []
        assert "script" not in {tag for tag, _ in read.elements}
        assert "script-src" not in page
        for _, attributes in read.elements:
            assert not [name for name in attributes if name.startswith("on")]
            for name in ("src", "href"):
                assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not re.search(r"@import|url\((?!#)", page)

    def test_it_says_what_was_found_in_order(self, page):
        text = " ".join(Reader(page).text)
        parts = (
            "html-tag-closing in bundled", "recover 93\u202f% of the model's behaviour",
            "0.93, 95 % interval [0.88, 0.97]",
            "All 20 random circuits", "Task and data", "Close the innermost HTML tag that is still open, such as <b>.",
            "Model and method", "efefefefefefefef", "Faithfulness",
            "between faithfulness 0 and 1 is 12.1, standard error 0.173.", "6.21", "5.40", "98.0",
            "\N{MINUS SIGN}5.87",
            "Activation patching", "Strongest: layer", "Strongest edges", "Circuit size",
            "Limitations", "Citation", "@software{circuitlab,", "Reproduction",
            "circuitlab reproduce '", "tag run'", "Files", "evaluation.json",
        )  # fmt: skip
        at = [text.find(part) for part in parts]
        assert -1 not in at, parts[at.index(-1)]
        assert at == sorted(at)

    def test_every_heatmap_the_circuit_and_the_curve_are_in_it(self, whole, page):
        elements = Reader(page).elements
        pictures = [a for tag, a in elements if tag == "img"]
        heatmaps = [a for a in pictures if "Heatmap" in a["alt"]]
        assert len(heatmaps) == len(list((whole / "sweeps").glob("*.csv"))) == 3
        drawn = [a for a in pictures if a["src"].startswith("data:image/svg+xml;base64,")]
        assert [a["alt"].split(":")[0] for a in drawn] == [
            "The circuit",
            "Faithfulness against the number of edges kept.",
        ]
        assert base64.b64decode(drawn[0]["src"].partition(",")[2]) == (whole / "circuit.svg").read_bytes()
        assert len(pictures) == 5
        assert all(int(a["width"]) > 99 and int(a["height"]) > 99 for a in pictures)
        assert "svg" not in {tag for tag, _ in elements}

    def test_strongest_edges_come_first(self, whole, page):
        rows = re.findall(r'<tr><th scope="row"><code>([^<]*)</code></th>', page)
        ranked = sorted(read_run(whole).edges, key=lambda edge: -abs(edge.score))[:30]
        assert [row.replace("&gt;", ">").replace("&lt;", "<") for row in rows] == [edge.name for edge in ranked]

    def test_files_carry_their_hashes(self, whole, page):
        for name in ("edges.csv", "circuit.json", "sweeps/head_z.csv"):
            assert hashlib.sha256((whole / name).read_bytes()).hexdigest() in page
        assert "report.html</th>" not in page

    def test_the_same_folder_gives_the_same_bytes(self, whole, page):
        assert write_report(whole) == whole / "report.html"
        assert (whole / "report.html").read_text(encoding="utf-8") == page
        assert not list(whole.glob(".*"))

    def test_a_folder_that_is_yet_to_be_renamed(self, whole, bare, page):
        being_written = bare.rename(bare.with_name(".tag run.partial"))
        command = re.compile("circuitlab reproduce .*")
        assert "partial" in command.findall(write_report(being_written).read_text(encoding="utf-8"))[0]
        named = write_report(being_written, name=str(bare)).read_text(encoding="utf-8")
        assert command.findall(named) == [command.findall(page)[0].replace(str(whole), str(bare))]

    def test_a_faithfulness_that_could_not_be_measured(self, bare):
        _edit("evaluation.json", '"faithfulness": 0.9328', '"faithfulness": null')(bare)
        assert "could not be measured" in write_report(bare).read_text(encoding="utf-8")

    def test_a_folder_of_an_earlier_version_does_not_tell_its_gap(self, bare):
        _edit("evaluation.json", '"metric_gap_se": 0.1734', '"metric_gap_se": null')(bare)
        assert "The gap in the metric" not in write_report(bare).read_text(encoding="utf-8")

    def test_no_model_is_loaded(self, whole):
        code = (
            f"import sys; from circuitlab import write_report; write_report({str(whole)!r});"
            "assert not {'torch', 'transformer_lens', 'networkx', 'matplotlib.pyplot'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"})

    def test_without_pictures_it_draws_them_again(self, bare, page):
        forget_hashes(bare)
        for picture in (*bare.glob("sweeps/*.png"), bare / "circuit.svg"):
            picture.unlink()
        again = write_report(bare).read_text(encoding="utf-8")
        data = re.compile(r"data:image/png;base64,([\w+/=]+)")
        assert data.findall(again) == data.findall(page)
        assert not (bare / "circuit.svg").exists()
        vector = re.compile(r"data:image/svg\+xml;base64,([\w+/=]+)")
        assert len(vector.findall(page)) == 2
        assert vector.findall(again) == vector.findall(page)


class TestEscaping:
    def test_prompts_are_text_and_nothing_else(self, page):
        read = Reader(page)
        assert NASTY not in page
        assert "<script" not in page
        assert "script" in "".join(read.text)
        assert not [tag for tag, _ in read.elements if tag in ("i", "script", "tr ")]

    def test_what_is_in_the_manifest_is_text_too(self, bare):
        manifest = json.loads((bare / "manifest.json").read_text(encoding="utf-8"))
        manifest["task"] |= {"label": NASTY, "summary": NASTY, "settings": {NASTY: NASTY}, "version": NASTY}
        manifest["model"] |= {"id": NASTY, "weights_sha256": NASTY}
        manifest["model"]["bos_tokens"], manifest["config"]["bos"] = [NASTY], NASTY
        manifest |= {"command": NASTY, "bibtex": NASTY, "device": NASTY}
        _write_json(bare / "manifest.json", manifest)
        page = write_report(bare).read_text(encoding="utf-8")
        assert "<script" not in page
        assert page.count("&lt;script&gt;") > 8

    @pytest.mark.parametrize(
        ("tokens", "says"), [(["<s>"], "&lt;s&gt; (always)"), ([], "none (always)"), (None, None), ("<s>", None)]
    )
    def test_the_token_in_front_of_every_text(self, bare, tokens, says):
        """Folders of earlier versions do not say."""
        manifest = json.loads((bare / "manifest.json").read_text(encoding="utf-8"))
        manifest["model"]["bos_tokens"], manifest["config"]["bos"] = tokens, "always"
        _write_json(bare / "manifest.json", manifest)
        page = write_report(bare).read_text(encoding="utf-8")
        assert ("BOS token" in page) == (says is not None)
        assert says is None or says in page

    def test_the_check_above_can_fail(self):
        assert "<script" in render("page.html.j2", title=Markup(NASTY), style="", script="")
        assert "<script" not in render("page.html.j2", title=NASTY, style="", script="")

    def test_a_drawing_is_an_image_whatever_is_in_it(self):
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt"><style>*{display:none}</style>'
            '<script>1</script><foreignObject><form action="//x"/></foreignObject><a href="//x" onclick="x()"/></svg>'
        )
        ((tag, made),) = Reader(render("picture.html.j2", picture=drawing(svg, 'a " & b'))).elements
        assert (tag, set(made)) == ("img", {"src", "alt", "width", "height"})
        assert made["alt"] == 'a " & b'
        assert (made["width"], made["height"]) == ("96", "48")
        assert base64.b64decode(made["src"].removeprefix("data:image/svg+xml;base64,")).decode() == svg

    @pytest.mark.parametrize("text", ["", "<svg", "<html/>", "<meta http-equiv='refresh'/>", "plain"])
    def test_what_is_no_drawing_is_refused(self, text):
        with pytest.raises(FormatError, match="no SVG"):
            drawing(text, "")

    def test_a_picture_is_a_png_from_its_first_chunk_to_its_last(self, whole):
        png = (whole / "sweeps" / "head_z.png").read_bytes()
        assert checked_png(png + b"<script>") == png
        spoilt = [
            png[:-1],
            png[:40],
            png[:8],
            b"",
            b"GIF89a",
            b"<svg/>",
            png[:60] + b"\0" + png[61:],
            png[:8] + png[33:],
        ]
        for other in spoilt:
            with pytest.raises(FormatError, match="no PNG"):
                bitmap(other, "")


class TestPrompts:
    def test_differences_and_spans_are_marked_token_by_token(self):
        pair = {
            "clean": "x", "corrupt": "y", "answers": ["th"], "distractors": ["td", " q"], "spans": {"tag": [6, 7]},
            "clean_tokens": CLEAN, "corrupt_tokens": CORRUPT,
        }  # fmt: skip
        html = render("pair.html.j2", pair=shown_pair(pair))
        (column,) = re.findall(r'<div class="tok diff span">(.*?)</div>', html)
        assert re.findall(">([^<]*)</span>", column) == ["th", "td", "tag"]
        assert html.count('class="tok') == len(CLEAN)
        assert "<b>td</b> / <b>␣q</b>" in html

    @pytest.mark.parametrize(("clean", "corrupt"), [("Ann is.", "Ann is;"), ("a b c", "a x y c"), ("", "a")])
    def test_without_tokens_words_are_compared(self, clean, corrupt):
        pair = {"clean": clean, "corrupt": corrupt, "answers": [], "distractors": [], "spans": {"tag": [0, 1]}}
        html = render("pair.html.j2", pair=shown_pair(pair))
        assert "diff" in html
        assert "tag" not in html
        shown = "".join(re.findall('class="above">([^<]*)<', html)[1:-1])
        assert shown.replace("␣", " ") == clean

    def test_equal_prompts_show_no_difference(self):
        assert "diff" not in render("pair.html.j2", pair=shown_pair({"clean": "a b", "corrupt": "a b"}))


class TestWords:
    @pytest.mark.parametrize(
        ("faithfulness", "words"),
        [(0.93, "recover 93\u202f% of the model's behaviour on html-tag-closing"), (0.2, "recover 20\u202f%"),
         (1.04, "recover 104\u202f%"), (-0.2, "away from the answer"), (1.4, "exceed the model's behaviour"),
         (float("nan"), "could not be measured")],
    )  # fmt: skip
    def test_the_headline_follows_the_number(self, whole, faithfulness, words):
        run = read_run(whole)
        assert words in headline(replace(run, evaluation={**run.evaluation, "faithfulness": faithfulness}))

    def test_random_circuits_that_are_as_good_are_named(self):
        assert random_sentence({"faithfulness": 0.9, "random_baseline": {"faithfulness": [0.1, 0.2]}}).startswith(
            "All 2"
        )
        beaten = random_sentence({"faithfulness": 0.9, "random_baseline": {"faithfulness": [0.1, 0.95]}})
        assert "1 score at least as high" in beaten
        assert random_sentence({"faithfulness": 0.9}) == ""

    def test_shared_prompts_are_named(self, whole):
        run = read_run(whole)
        assert "no prompt is in both" in " ".join(caveats(run))
        leaked = tuple({**pair, "clean": "same"} for pair in run.pairs)
        assert "1 prompt is in both splits" in " ".join(caveats(replace(run, pairs=leaked)))

    def test_numbers(self):
        assert (number(-0.001), number(-1.234), number(True), number("1")) == ("0.00", "\N{MINUS SIGN}1.23", NONE, NONE)
        assert (significant(1519.4), significant(0.012345), significant(0)) == ("1,519", "0.0123", "0")
        assert (percent(0.0402), interval([0.1, None]), plural(2, "edge")) == ("4.0\u202f%", "", "2 edges")


Break = Callable[[Path], object]


def _edit(name: str, old: str, new: str) -> Break:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
        forget_hashes(folder)

    return change


class TestDamage:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
            (lambda f: (f / "manifest.json").write_text("{"), "manifest.json' .* not valid JSON"),
            (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json' .* it must be a JSON object"),
            (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json' .* has no field 'schema'"),
            (lambda f: (f / "evaluation.json").unlink(), "evaluation.json is missing"),
            (lambda f: (f / "sweeps" / "head_z.csv").unlink(), "sweeps/head_z.csv is missing"),
            (lambda f: (f / "edges.csv").write_text("source,target\n"), "edges.csv .* changed after the run"),
            (_edit("edges.csv", "True", "False"), "edges.csv .* disagrees with circuit.json"),
            (_edit("edges.csv", "in_circuit", "kept"), "edges.csv .* in_circuit"),
            (_edit("circuit.json", '"input->logits"', '"nonsense"'), "circuit.json .* 'nonsense'"),
            (_edit("circuit.json", '"nodes"', '"knots"'), "circuit.json .* MIB / EAP-IG format"),
            (_edit("dataset.jsonl", "{", ""), "dataset.jsonl .* line 1"),
            (_edit("dataset.jsonl", '"clean"', '"klean"'), "dataset.jsonl .* line 1"),
            (_edit("evaluation.json", "faithfulness", "f"), "evaluation.json .* 'faithfulness'"),
            (_edit("evaluation.json", '"faithfulness": 0.9328', '"faithfulness": "high"'), "evaluation.json .* 'high'"),
            (_edit("evaluation.json", '"n_edges"', '"edges"'), "evaluation.json .* 'n_edges'"),
            (_edit("evaluation.json", '"curve": [', '"curve": [1, '), "evaluation.json"),
            (_edit("sweeps/head_z.csv", "value", "v"), "sweeps/head_z.csv .* 'value'"),
        ],
    )
    def test_it_names_the_file_and_the_fix_and_leaves_no_page(self, bare, spoil, message):
        spoil(bare)
        with pytest.raises(RunError, match=message) as caught:
            write_report(bare)
        assert "discover" in str(caught.value)
        assert not (bare / "report.html").exists()
        assert not list(bare.glob(".*"))

    def test_a_drawing_that_is_no_drawing(self, bare):
        forget_hashes(bare)
        (bare / "circuit.svg").write_text("<svg", encoding="utf-8")
        with pytest.raises(RunError, match=r"circuit\.svg"):
            write_report(bare)
        (bare / "circuit.svg").unlink()
        (bare / "sweeps" / "head_z.png").write_bytes(b"GIF")
        with pytest.raises(RunError, match=r"head_z\.png"):
            write_report(bare)

    def test_a_folder_that_is_none(self, tmp_path):
        with pytest.raises(RunError, match="there is no run folder"):
            write_report(tmp_path / "nowhere")


MEASURED = {
    "completeness": {
        "complement_faithfulness": 0.0314, "incompleteness": 0.052, "incompleteness_max": 0.211,
        "knockouts": [{"n_edges": 3, "faithfulness_circuit": 0.5, "faithfulness_model": 0.6}] * 7,
    },
    "minimality": [
        {"edge": "input->a0.h0<q>", "effect": 0.4, "ci": [0.3, 0.5]},
        {"edge": "m0->logits", "effect": -0.02, "ci": [-0.05, 0.01]},
    ],
    "smallest_sufficient": {"at_least": 0.9, "n_edges": 17, "n_edges_nominal": 20, "faithfulness": 0.91},
    "overshoot": True, "cpr_log": 0.712, "cmd_log": 0.288,
}  # fmt: skip
REPEATED = {
    "n": 100, "jaccard_mean": 0.8134, "jaccard_cv": 0.129, "jaccard_to_circuit": 0.88,
    "n_edges": {"circuit": 21, "min": 19, "max": 28, "median": 21.5}, "n_edges_ever": 30, "n_edges_always": 17,
}  # fmt: skip


PATTERNS = {
    "schema": "circuitlab.attention/1", "title": NASTY, "tokens": ["<b>", NASTY, "\n"],
    "heads": [
        {"head": "a0.h1", "note": "0.41", "weights": [[1.0], [0.25, 0.75], [0.2, 0.3, 0.5]]},
        {"head": "a3.h7", "note": NASTY, "weights": [[1.0], [0.5, 0.5], [0.1, 0.1, 0.8]]},
    ],
}  # fmt: skip


class TestAttention:
    """The attention patterns of the circuit's heads: the one part of the page that has a script."""

    @pytest.fixture
    def folder(self, bare):
        forget_hashes(bare)
        _write_json(bare / "attention.json", PATTERNS)
        return bare

    def test_the_page_runs_the_one_constant_script_and_nothing_from_data(self, folder):
        page = write_report(folder).read_text(encoding="utf-8")
        read = Reader(page)
        assert (read.open, read.misnested) == ([], [])
        digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
        policies = [a["content"] for tag, a in read.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == [
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
            "base-uri 'none'; form-action 'none'"
        ]
        assert re.findall(r"<script>(.*?)</script>", page, re.DOTALL) == [SCRIPT]
        scripts = [attributes for tag, attributes in read.elements if tag == "script"]
        assert scripts == [{"type": "application/json", "id": "attention-data"}, {}]
        assert NASTY not in page
        assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]

    def test_its_picture_is_in_the_page_and_drawn_again_where_there_is_none(self, folder):
        drawn = write_report(folder).read_text(encoding="utf-8")
        png = figure_bytes(plot(read_run(folder).attention), "png")
        assert text_of(png) in drawn
        (folder / "attention.png").write_bytes(png)
        picture = re.compile(r'class="attention-still">.*?</figure>', re.DOTALL)
        assert picture.findall(write_report(folder).read_text(encoding="utf-8")) == picture.findall(drawn)
        assert "The 2 heads of the circuit" in drawn

    def test_a_run_without_patterns_has_neither_section_nor_script(self, page):
        assert "Attention patterns" not in page
        assert "attention" not in page

    @pytest.mark.parametrize(
        ("text", "what"),
        [("{", "not valid JSON"), ('{"tokens": []}', "'heads'"), ('{"tokens": [], "heads": []}', "no head")],
    )
    def test_damage_is_told(self, folder, text, what):
        (folder / "attention.json").write_text(text, encoding="utf-8")
        with pytest.raises(RunError, match=rf"attention\.json .* {what}"):
            write_report(folder)

    def test_a_damaged_picture_is_told(self, folder):
        (folder / "attention.png").write_bytes(b"GIF")
        with pytest.raises(RunError, match=r"attention\.png .* it is no PNG"):
            write_report(folder)


class TestTrust:
    """What a run knows beside its faithfulness: completeness, minimality, stability."""

    def test_it_is_told_where_it_was_measured(self, tmp_path):
        run = read_run(write_run(tmp_path / "run"))
        run = replace(run, evaluation={**run.evaluation, **MEASURED}, repeated=(Repeated(numbers=REPEATED, png=None),))
        text = whole_page(run)
        for words in (
            "<dd>0.031</dd>", "0.052 (mean over 7 knockouts; maximum 0.211)", "For 1 of 2 edges",
            "m0-&gt;logits", "17 edges by score", "some circuit exceeds faithfulness 1", "0.712", "0.288",
            "100 bootstrap resamples", "0.813 between repetitions", "0.129", "19 to 28", "17 of the 30",
        ):  # fmt: skip
            assert words in text, words
        least = text[text.index("edge removed") :]
        assert least.index("m0-&gt;logits") < least.index("input-&gt;a0.h0&lt;q&gt;")

    def test_and_left_out_where_it_was_not(self, tmp_path):
        text = whole_page(read_run(write_run(tmp_path / "run")))
        for words in ("minimality", "Stability", "smallest with", "overshoot"):
            assert words not in text

    def test_the_drawing_stands_in_the_page(self, tmp_path):
        run = read_run(write_run(tmp_path / "run"))
        png = figure_bytes(draw_circuit(run.nodes, run.edges), "png")
        drawn, bare = (replace(run, repeated=(Repeated(numbers=REPEATED, png=p),)) for p in (png, None))
        assert text_of(png) in whole_page(drawn)
        assert text_of(png) not in whole_page(bare)

    def test_a_damaged_drawing_is_told(self, tmp_path):
        folder = write_run(tmp_path / "run")
        (folder / "stability.json").write_text("{}")
        (folder / "stability.png").write_bytes(b"no picture")
        with pytest.raises(RunError, match="stability.png .* is damaged: it is no PNG"):
            read_run(folder)


def text_of(png: bytes) -> str:
    return base64.b64encode(png).decode()
