"""Attention patterns: the model's own, drawn with tokens on both axes, and a page that runs one constant script."""

import base64
import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import NATIVE, load

from circuitlab import ConfigError, Node, UnknownNameError, attention, load_task
from circuitlab.attribution.record import AttentionPatterns
from circuitlab.errors import FormatError
from circuitlab.report.render import asset

SCRIPT = asset("attention.js")
TOKENS = torch.tensor([[0, 5, 9, 2, 7, 3]])
NASTY = "</script><script>alert(1)</script>"


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "gemma2", "olmo2", "granite", "mpt", "bloom", *NATIVE])
def test_patterns_are_the_models_own(name):
    model = load(name)
    found = attention(model, TOKENS, ["a1.h3", "a0.h2"])
    _, cache = model.bridge.run_with_cache(TOKENS)
    for head, (layer, number) in (("a1.h3", (1, 3)), ("a0.h2", (0, 2))):
        theirs = cache[f"blocks.{layer}.attn.hook_pattern"][0, number].detach().numpy()
        assert np.abs(found.pattern(head) - theirs).max() < 1e-6
    assert np.abs(found.patterns.sum(-1) - 1).max() < 1e-6
    assert np.abs(found.pattern("a1.h3") - found.pattern("a0.h2")).max() > 0.01


def test_a_prompt_is_a_text_a_pair_or_tokens(bundled):
    pair = load_task("gendered-pronouns").pairs(bundled, n=2, seed=0).discovery[0]
    from_pair, from_text = attention(bundled, pair, ["a3.h5"]), attention(bundled, pair.clean, ["a3.h5"])
    from_ids = attention(bundled, torch.tensor(pair.clean_ids), ["a3.h5"])
    for found in (from_text, from_ids):
        assert found.tokens == from_pair.tokens == pair.clean_tokens
        assert np.array_equal(found.patterns, from_pair.patterns)
    corrupt = attention(bundled, pair, ["a3.h5"], run="corrupt")
    assert corrupt.tokens == pair.corrupt_tokens
    assert not np.array_equal(corrupt.patterns, from_pair.patterns)
    assert from_pair.title == pair.clean


def test_heads_are_names_or_nodes_and_all_by_default():
    model = load("gpt2")
    assert attention(model, TOKENS).heads == tuple(f"a{layer}.h{head}" for layer in range(2) for head in range(4))
    chosen = attention(model, TOKENS, [Node.parse("a1.h0"), "a0.h1", "a1.h0"])
    assert chosen.heads == ("a1.h0", "a0.h1")
    with pytest.raises(UnknownNameError, match="unknown head 'a2.h0'.*Allowed: a0.h0, a0.h1"):
        attention(model, TOKENS, ["a2.h0"])
    with pytest.raises(UnknownNameError, match="unknown head 'm0'"):
        attention(model, TOKENS, ["m0"])
    with pytest.raises(ConfigError, match="no head is chosen"):
        attention(model, TOKENS, [])
    with pytest.raises(UnknownNameError, match="unknown head 'a0.h0'.*Allowed: a0.h1."):
        attention(model, TOKENS, "a0.h1").pattern("a0.h0")


def test_the_table_has_no_later_keys():
    found = attention(load("gpt2"), TOKENS, ["a0.h1", "a1.h1"])
    frame = found.to_frame()
    assert len(frame) == 2 * 21
    assert (frame["key"] <= frame["query"]).all()
    assert frame["weight"].sum() == pytest.approx(12)
    assert frame.iloc[-1]["weight"] == found.patterns[1, 5, 5]


@pytest.mark.parametrize("n", [6, 60])
def test_the_picture_names_every_token(n):
    tokens = torch.arange(1, n + 1)[None]
    found = attention(load("gpt2"), tokens, ["a0.h0", "a0.h1", "a0.h2", "a1.h0", "a1.h1", "a1.h2"])
    figure = found.plot()
    axes = figure.axes[:6]
    assert [panel.get_title(loc="left").split()[0] for panel in axes] == list(found.heads)
    below = [len(panel.get_xticklabels()) for panel in axes]
    left = [len(panel.get_yticklabels()) for panel in axes]
    assert set(below) | set(left) <= {0, tokens.shape[1]}
    assert left[0] == below[-1] == tokens.shape[1]
    values = axes[0].collections[0].get_array()
    assert np.allclose(np.tril(values.filled(0)), np.tril(found.patterns[0]))


class TestThePage:
    @pytest.fixture
    def found(self):
        weights = np.tril(np.ones((3, 3)))
        found = attention(load("gpt2"), TOKENS[:, :3], ["a0.h1"], notes={"a0.h1": NASTY})
        return replace(
            found, tokens=("<b>", NASTY, "\n"), title=NASTY, patterns=(weights / weights.sum(-1, keepdims=True))[None]
        )

    def test_it_runs_the_one_script_of_this_package_and_nothing_from_data(self, found):
        page = found.to_html()
        scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
        assert scripts == [SCRIPT]
        digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in page
        assert NASTY not in page
        assert page.count("<script") == 2  # the constant, and the data that no browser runs
        assert not re.search(r"<[^>]+\son\w+=", page)

    def test_its_data_are_the_patterns(self, found):
        page = found.to_html()
        inside = re.search(r'<script type="application/json" id="attention-data">(.*?)</script>', page, re.DOTALL)
        data = json.loads(inside[1])
        assert data["heads"] == [
            {"head": "a0.h1", "note": NASTY, "weights": [[1, 0, 0], [0.5, 0.5, 0], [0.3333, 0.3333, 0.3333]]}
        ]
        assert data["tokens"] == ["<b>", NASTY, "↵"]

    def test_the_picture_stands_there_without_script(self, found):
        page = found.to_html()
        still = page.index('class="attention-still"')
        assert still < page.index("data:image/png;base64,") < page.index('id="attention-live" hidden=""')
        assert "display: block" in page[page.index("@media print") :]

    def test_it_is_written_whole_or_not_at_all(self, found, tmp_path):
        path = found.save(tmp_path / "a.html")
        assert path.read_text(encoding="utf-8") == found.to_html()
        assert list(tmp_path.iterdir()) == [path]
        with pytest.raises(ConfigError, match=r"'a.png' is no page"):
            found.save(tmp_path / "a.png")

    def test_a_notebook_cell_shows_the_picture(self, found):
        cell = found._repr_html_()
        assert "data:image/png" in cell
        assert "<script" not in cell

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"tokens": None}, "TypeError"),
            ({"heads": []}, "no head"),
            ({"heads": [{"head": "a0.h1"}]}, "'weights'"),
            ({"heads": [{"head": "a0.h1", "weights": [[1.0]]}]}, "1 rows for 3 tokens"),
            ({"heads": [{"head": "a0.h1", "weights": [["x"], [1], [1]]}]}, "'x'"),
            ({"heads": [{"head": "a0.h1", "weights": [[1], [1], [float("nan")]]}]}, "no number"),
            ({"heads": [{"head": "a0.h1", "weights": [[1] * 4] * 3}]}, "ValueError"),
        ],
    )
    def test_a_record_that_is_none_is_told(self, found, change, words):
        with pytest.raises(FormatError, match=words):
            AttentionPatterns.of_record({**found.to_record(), **change})

    def test_a_record_comes_back(self, found):
        data = AttentionPatterns.of_record(json.loads(json.dumps(found.to_record())))
        assert (data.tokens, data.heads, data.notes) == (found.tokens, found.heads, found.notes)
        assert np.abs(data.patterns - found.patterns).max() < 1e-4
