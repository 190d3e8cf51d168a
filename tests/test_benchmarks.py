"""The benchmarks on a model of two layers: that they run, that the two ways agree, and that they could disagree.

No time is asserted here. docs/parity.md is read, and one of its numbers is made again.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import architectures
import numpy as np
import pytest
import torch

from benchmarks import circuits, eap, edges, memory, methods, models, oracles, parity, run, sweeps, table
from benchmarks.clock import Timing, in_turn, machine
from benchmarks.findings import Finding, Unit
from benchmarks.per_cell import WAYS, weights_ask_for_gradients
from benchmarks.rate import block_products
from benchmarks.work import needed_operations
from circuitlab import score_edges
from circuitlab.parts import Layout
from circuitlab.patching.sweeps.sites import SITES

ROOT = Path(__file__).parent.parent
TINY = models.Size(name="tiny", n_layers=2, n_heads=2, d_model=32, d_vocab=50, n_prompts=3, n_tokens=8)
PLAN = run.Plan(
    large=TINY, small=TINY, rounds=1, per_site=(2, 2), edges=3, together=3, alone=2, exact_prompts=1, method_pairs=2
)


@pytest.fixture(scope="module")
def tiny() -> models.Setup:
    return models.make(TINY, dtype=torch.float64)


def in_two_steps(model, pairs, method):
    """The method's scores, after two training steps instead of hundreds."""
    return score_edges(model, pairs, method, **({"updates": 2} if method in ("edge-pruning", "ugs") else {}))


def difference(findings: list[Finding]) -> float:
    return next(f.value for f in findings if f.unit is Unit.SHARE)


class TestModels:
    def test_prompts_differ_where_they_say(self, tiny):
        batch = tiny.batch
        differ = (batch.clean != batch.corrupt).nonzero()
        assert differ.tolist() == [[row, position] for row in range(3) for position in (3, 6)]
        assert batch.answer_at.tolist() == [7, 7, 7]

    def test_every_gap_is_positive(self, tiny):
        """Gaps of either sign would cancel in the mean that differences are a share of."""
        clean, corrupt = (
            oracles.logit_diff(tiny.model.whole_logits(tokens), tiny.batch)
            for tokens in (tiny.batch.clean, tiny.batch.corrupt)
        )
        assert (clean > corrupt).all()

    def test_the_same_weights_in_every_dtype(self, tiny):
        single = models.make(TINY)
        assert (single.batch.clean == tiny.batch.clean).all()
        pairs = zip(single.model.bridge.parameters(), tiny.model.bridge.parameters(), strict=True)
        assert all((a.double() == b).all() for a, b in pairs)

    def test_the_sizes_of_the_issue(self):
        assert (models.GPT2_SMALL.n_layers, models.GPT2_SMALL.d_model, models.GPT2_SMALL.n_prompts) == (12, 768, 8)
        assert (models.FOUR_LAYERS.n_layers, models.FOUR_LAYERS.d_vocab, models.FOUR_LAYERS.n_prompts) == (4, 1000, 64)


class TestOperations:
    def test_gpt2_small_needs_three_tera(self):
        assert needed_operations(models.GPT2_SMALL, models.DIFFER_AT) / 1e12 == pytest.approx(3.05, abs=0.005)

    @pytest.mark.parametrize("size", [TINY, models.FOUR_LAYERS])
    @pytest.mark.parametrize("differ_at", [(3, 6), (0, 1)])
    def test_token_by_token(self, size, differ_at):
        """Counted once more: what each token of each cell needs in each block."""

        def blocks(layer: int, tokens: range) -> int:
            found = 0
            for block in range(layer, size.n_layers):
                for token in tokens:
                    everything = block < size.n_layers - 1 or token == size.n_tokens - 1
                    found += 24 if everything else 4
            return found

        def own_mlp(layer: int, tokens: range) -> int:
            return 16 * len(tokens) if layer < size.n_layers - 1 else 16

        first, total = min(differ_at), 0
        for layer in range(size.n_layers):
            for position in range(first, size.n_tokens):
                behind = range(position, size.n_tokens)
                if layer > 0 or position in differ_at:
                    total += blocks(layer, behind)  # resid_pre
                total += own_mlp(layer, behind) + 2 * blocks(layer + 1, behind)  # attn_out, mlp_out
            behind = range(first, size.n_tokens)
            total += size.n_heads * (own_mlp(layer, behind) + blocks(layer + 1, behind))  # head_z
        assert needed_operations(size, differ_at) == total * size.d_model**2 * size.n_prompts

    def test_an_earlier_difference_needs_more(self):
        assert needed_operations(TINY, (2, 6)) > needed_operations(TINY, (3, 6))

    def test_the_products_of_a_block(self):
        products = block_products(8, 5)
        products.run()
        assert products.operations == 24 * 8**2 * 5


class TestSweeps:
    def test_both_ways_agree(self, tiny):
        found = sweeps.standard_sweeps(tiny, rounds=1, per_site=2, target=20, share=0.6)
        assert [f.unit for f in found] == [Unit.FASTER, Unit.PERCENT, Unit.SHARE]
        assert all(f.value > 0 for f in found)
        assert found[-1].reached
        assert found[-1].target == 1e-8
        assert sweeps.values_agree(tiny, 4).value < 1e-10

    def test_they_could_disagree(self, tiny):
        """The twin: with the prompts exchanged the values are others."""
        cells = sweeps.sampled_cells(tiny, 4)
        ours = sweeps.our_sweeps(tiny.model, tiny.batch.swapped())
        theirs = sweeps.our_sweeps(tiny.model, tiny.batch)
        for site in sweeps.SITES:
            a, b = (np.stack([grids[site].per_example[cell] for cell in cells[site]]) for grids in (ours, theirs))
            assert sweeps.as_share_of_gap(a, b, theirs[site].clean, theirs[site].corrupt) > 1e-2

    def test_the_sample_is_spread_over_layers_and_lies_where_prompts_differ(self, tiny):
        cells = sweeps.sampled_cells(tiny, 4)
        assert {layer for layer, _ in cells["head_z"]} == {0, 1}
        assert all(position >= 3 for site in sweeps.SITES[:3] for _, position in cells[site])

    def test_weights_are_left_as_they_were(self, tiny):
        bridge = tiny.model.bridge
        with weights_ask_for_gradients(bridge):
            assert all(weight.requires_grad for weight in bridge.parameters())
        assert not any(weight.requires_grad for weight in bridge.parameters())


class TestEdgesAndCircuits:
    def test_exact_edges_agree_with_a_pass_an_edge(self, tiny):
        found = edges.exact_edges(tiny, rounds=1, sample=5, target=10)
        assert difference(found) < 1e-10
        assert "46 passes" in found[0].detail

    def test_edges_differ_among_each_other(self, tiny):
        layout = Layout.of(tiny.model.spec)
        effects = oracles.edge_effects(tiny.model.bridge, layout, tiny.batch, list(layout.edges())[:4])
        assert np.ptp(effects.mean(1)) > 1e-6

    def test_circuits_alone_and_together(self, tiny):
        found = circuits.circuit_runs(tiny, rounds=1, sizes=(8, 5), n_together=3, n_alone=2, targets=(1, 2))
        assert difference(found) < 1e-10
        assert [f.unit for f in found] == [Unit.TIMES] * 3 + [Unit.CHEAPER, Unit.SHARE]

    def test_the_gradient_pass_gives_the_gradient_at_the_embedding(self, tiny):
        layout = Layout.of(tiny.model.spec)
        expected = oracles.writer_gradients(tiny.model.bridge, layout, tiny.batch)[0]
        assert eap.embedding_gradient(tiny) == pytest.approx(expected, abs=1e-12)
        assert not any(block._forward_pre_hooks for block in tiny.model.bridge.blocks)

    def test_attribution_without_its_memory(self, tiny):
        (found,) = eap.attribution(tiny, rounds=1, target=1, gigabytes=None)
        assert found.what.startswith("EAP over 46 edges")


class TestMemory:
    def test_what_a_run_takes_is_seen(self):
        assert memory.resident_above(lambda: torch.ones(2**24)) == pytest.approx(2**26, rel=0.2)

    def test_in_a_process_of_its_own_it_prints_bytes(self, capsys):
        eap._main('{"name": "tiny", "n_layers": 1, "n_heads": 2, "d_model": 16, "d_vocab": 50, "n_prompts": 2}', "cpu")
        assert int(capsys.readouterr().out) >= 0


class TestClock:
    def test_ways_take_turns(self):
        order: list[str] = []
        timings = in_turn({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3)
        assert "".join(order) == "ababab"
        assert all(len(timing.seconds) == 3 for timing in timings.values())

    def test_arithmetic_of_times(self):
        timing = Timing((3.0, 1.0, 2.0))
        assert (timing.best, timing.median) == (1.0, 2.0)
        assert timing.times(2).plus(timing).seconds == (9.0, 3.0, 6.0)

    def test_the_machine_is_told(self):
        facts = machine()
        assert {"Processor", "Threads", "Versions", "Date"} <= set(facts)
        assert torch.__version__ in facts["Versions"]


class TestTable:
    more = Finding(what="a", on="m", value=12.0, unit=Unit.FASTER, target=12.0, in_the_middle=11.5, detail="d")

    def test_reached_or_not(self):
        assert self.more.reached
        assert not replace(self.more, value=11.9).reached
        assert not replace(self.more, at_least=False, target=11.0).reached
        assert replace(self.more, target=None).reached is None

    def test_cells(self):
        bound = "at least 12 times faster"
        assert self.more.cells() == ("a", "m", "12 times faster (median 11.5)", bound, "yes", "d")
        assert replace(self.more, value=3.0).cells()[4] == "**no**"
        assert self.more.cells(judged=False)[4] == "not judged"

    def test_prose_stays_and_each_key_has_its_own_part(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("# Title\n\nProse.\n")
        table.write_generated(page, "cpu", "one")
        table.write_generated(page, "cuda", "two")
        table.write_generated(page, "cpu", r"three \1")
        expected = "# Title\n\nProse.\n\n<!-- begin cpu -->\n\nthree \\1\n\n<!-- end cpu -->\n\n"
        assert page.read_text() == expected + "<!-- begin cuda -->\n\ntwo\n\n<!-- end cuda -->\n"


class TestCommand:
    def test_the_whole_of_it(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(run, "FULL", PLAN)
        monkeypatch.setattr(run, "CIRCUIT_SIZES", (8, 5))
        monkeypatch.setattr(run, "CPU_SWEEPS", {"tiny": 12.0})
        monkeypatch.setattr(eap, "peak_of_eap", lambda setup: 5 * 10**8)
        monkeypatch.setattr(methods, "score_edges", in_two_steps)
        page = tmp_path / "page.md"
        assert run.main(["--rounds", "1", "--out", str(page)]) == 0
        text = page.read_text()
        assert [line for line in text.splitlines() if line.startswith("### ")] == [
            f"### {title}" for title in run.TITLES.values()
        ]
        assert "0.50 GB" in text
        assert "quick run" not in text
        assert "EAP over 46 edges" in capsys.readouterr().out

    def test_one_part_is_printed_not_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(run, "QUICK", PLAN)
        page = tmp_path / "page.md"
        assert run.main(["--quick", "--only", "edges", "--out", str(page)]) == 0
        assert not page.exists()

    @pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--only", "sleep"]])
    def test_mistakes(self, wrong, capsys):
        with pytest.raises(SystemExit, match="2"):
            run.main(wrong)
        assert "at least 1" in (told := capsys.readouterr().err) or "invalid choice: 'sleep'" in told


def tables_of(text: str) -> Iterator[tuple[str, str, float, str]]:
    """Architecture, quantity, tolerance and cell of every number on the parity page."""
    for block in re.findall(rf"^\| {parity.ARCHITECTURE} \|.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL):
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        for name, tolerance, *cells in rows:
            for quantity, cell in zip(header[2:], cells, strict=True):
                yield name, quantity, float(tolerance), cell


def too_large(text: str) -> list[tuple[str, str, str]]:
    words = (parity.NOT_THERE, parity.REFUSED)
    return [(n, q, cell) for n, q, tolerance, cell in tables_of(text) if cell not in words and float(cell) > tolerance]


class TestParity:
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")

    def test_every_architecture_has_every_quantity(self):
        there = {(name, quantity) for name, quantity, _, _ in tables_of(self.page)}
        assert {*parity.NAMES} == {*architectures.ARCHITECTURES, *architectures.NATIVE}
        wanted = {q.name for q in parity.quantities()}
        assert there == {(name, quantity) for name in parity.NAMES for quantity in wanted}
        assert {site.partition(" ")[0] for site in (*parity.SWEEPS, *parity.FINER)} == set(SITES)

    def test_no_number_is_above_its_tolerance(self):
        assert not too_large(self.page)
        tolerances = {name: tolerance for name, _, tolerance, _ in tables_of(self.page)}
        assert tolerances == {name: architectures.TOLERANCE[name] for name in parity.NAMES}

    def test_one_that_is_would_be_found(self):
        name, quantity, _, cell = next(tables_of(self.page))
        assert too_large(self.page.replace(f" {cell} |", " 1e-03 |", 1)) == [(name, quantity, "1e-03")]

    def test_only_what_cannot_be_is_missing(self):
        missing = {(name, quantity): cell for name, quantity, _, cell in tables_of(self.page) if not cell[0].isdigit()}
        for (name, quantity), cell in missing.items():
            spec = architectures.load(name).spec
            if cell == parity.REFUSED:
                assert "TransformerLens" in quantity
            elif quantity == "resid_mid":
                assert spec.parallel or not spec.has_mlp
            else:
                assert quantity in ("mlp_out", "neuron")
                assert not spec.has_mlp

    def test_oracles_are_there(self):
        for quantity in parity.quantities():
            home, _, name = quantity.oracle.split("`")[1].rpartition(".")
            if home == "oracles":
                assert callable(getattr(oracles, name))
            else:
                assert home in ("transformer_lens.patching", "transformer_lens.tools.analysis.attribution_patching")
        assert {way.function for way in WAYS.values()} >= {"get_act_patch_resid_pre", "generic_activation_patch"}

    @pytest.mark.parametrize("site", ["head_z", "neuron"])
    def test_a_number_made_again(self, site):
        assert parity.sweep_difference("gpt2", site) < architectures.TOLERANCE["gpt2"]
        # The twin: another direction is another number.
        assert parity.sweep_difference("gpt2", site, "noise") > 1e-2

    def test_edges_and_circuits_made_again(self):
        assert parity.circuit_difference("gpt2") < architectures.TOLERANCE["gpt2"]
        assert parity.eap_difference("gpt2") < architectures.TOLERANCE["gpt2"]
        assert parity.writer_difference("gpt2") < architectures.TOLERANCE["gpt2"]

    def test_circuits_of_the_table_differ(self):
        layout = Layout.of(architectures.load("gpt2").spec)
        bridge, batch = architectures.load("gpt2").bridge, architectures.pairs()
        whole, part = (oracles.circuit_run(bridge, layout, batch, mask) for mask in parity.circuits(layout)[:2])
        assert np.abs(whole - part).max() > 0.05


def test_the_performance_page_has_every_part():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for title in run.TITLES.values():
        assert f"\n### {title}\n" in text
    for fact in ("Processor", "Threads", "Versions", "Date"):
        assert f"| {fact} | " in text
