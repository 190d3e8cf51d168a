"""A user's own model in plain torch, with the members of the protocol and nothing else, runs everything."""

from dataclasses import replace

import numpy as np
import pytest
from architectures import huggingface, load, pairs
from own_model import OwnModel

from circuitlab import (
    direct_attribution,
    evaluate,
    load_model,
    logit_lens,
    patch_edges,
    path_patch,
    score_edges,
    score_nodes,
    select,
    sweep,
)
from circuitlab.discovery.scoring import METHODS
from circuitlab.errors import CircuitLabError, UnsupportedModelError, WrongTypeError
from circuitlab.models import verify as verification
from circuitlab.models.protocol import Model
from circuitlab.models.verify import verify
from circuitlab.parts import Layout
from circuitlab.patching.runs.neuron_values import neuron_values
from circuitlab.patching.sweeps.sites import SITES

FEW = {"acdc": {"threshold": 0.05}, "ugs": {"updates": 2}, "edge-pruning": {"updates": 2}}
ANALYSES = {
    "head attribution": lambda model: direct_attribution(model, pairs(), by="head").per_example,
    "neuron attribution": lambda model: direct_attribution(model, pairs(), by="neuron").per_example,
    "logit lens": lambda model: logit_lens(model, pairs()).values,
    "paths": lambda model: path_patch(model, pairs(), "a0.h1", ["logits"]).values,
    "edges": lambda model: patch_edges(model, pairs(), [*Layout.of(model.spec).edges()][::9]).values,
    "nodes": lambda model: score_nodes(model, pairs(), "eap", level="neuron").values,
    "neurons": lambda model: neuron_values(model, pairs().clean, 0).numpy(),
}


def own(standard: bool = True) -> OwnModel:
    """GPT-2 with the random weights of the bridge's."""
    weights = {name: weight.double() for name, weight in huggingface("gpt2").state_dict().items()}
    return OwnModel(weights, replace(load("gpt2").spec, name="own"), standard)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max()))


# With the shortcuts of standard attention, and by the model's own attention alone.
@pytest.mark.parametrize("standard", [True, False])
@pytest.mark.parametrize("method", sorted({*METHODS} - {"relp"}))
def test_scores_are_those_of_the_bridge(method, standard):
    options = FEW.get(method, {})
    found, expected = (score_edges(model, pairs(), method, **options) for model in (own(standard), load("gpt2")))
    assert close(found.values, expected.values)


@pytest.mark.parametrize("site", SITES)
def test_sweeps_are_those_of_the_bridge(site):
    assert close(*(sweep(model, pairs(), site).values for model in (own(), load("gpt2"))))


@pytest.mark.parametrize("analysis", ANALYSES)
def test_analyses_are_those_of_the_bridge(analysis):
    assert close(*(ANALYSES[analysis](model) for model in (own(), load("gpt2"))))


def test_a_circuit_is_selected_and_judged():
    model, bridge = own(), load("gpt2")
    circuits = [select(of, score_edges(of, pairs(), "eap"), pairs(), n_edges=20) for of in (model, bridge)]
    assert np.array_equal(circuits[0].mask, circuits[1].mask)
    options = {"n_random": 2, "n_knockouts": 2, "minimality": False}
    found, expected = (evaluate(of, circuits[0], pairs(), **options) for of in (model, bridge))
    assert found.faithfulness == pytest.approx(expected.faithfulness, abs=1e-9)


def test_other_weights_give_other_numbers():
    model = own()
    model._weights["transformer.h.1.mlp.c_proj.weight"] *= 1.01
    assert not close(*(score_edges(of, pairs(), "eap").values for of in (model, load("gpt2"))))


def test_it_has_the_members_of_the_protocol_and_no_others():
    assert load_model(model := own()) is model
    members = {name for name in dir(OwnModel) if not name.startswith("_")} | {"spec"}
    assert members == {name for name in dir(Model) if not name.startswith("_")}


def test_a_missing_member_is_named():
    class Partial:
        def __init__(self, lacking):
            self._model, self._lacking = own(), lacking

        def __getattr__(self, name):
            if name in self._lacking:
                raise AttributeError(name)
            return getattr(self._model, name)

    for lacking in (("attend",), ("attend", "logits")):
        with pytest.raises(
            WrongTypeError, match=f"of type Partial; it must be Model, and lacks {', '.join(lacking)}\\.$"
        ):
            score_edges(Partial(lacking), pairs(), "eap")
    assert np.isfinite(score_edges(Partial(()), pairs(), "eap").values).all()


@pytest.mark.parametrize("method", ["eap", "eap-ig", "exact", "ifr"])
def test_arguments_of_blocks_are_any_object(method):
    class Bare(OwnModel):
        def block_arguments(self, tokens):
            return object()

        def attend(self, layer, q, k, v, arguments):
            assert type(arguments) is object
            return super().attend(layer, q, k, v, k.shape[1])

    model = own()
    found = score_edges(Bare(model._weights, model.spec, False), pairs(), method).values
    assert np.array_equal(found, score_edges(own(False), pairs(), method).values)


def test_relp_says_what_it_needs():
    with pytest.raises(CircuitLabError, match="relp changes the backward pass .*; OwnModel is none"):
        score_edges(own(), pairs(), "relp")


STEPS = (
    "embedding", "run_blocks", "attn_input", "read_attention", "attend", "attn_output", "head_outputs", "mlp_hidden",
    "mlp_from_hidden", "mlp_output", "neuron_weight", "logits", "head_weights",
)  # fmt: skip


def changed(step: str, change) -> OwnModel:
    """A model of which one step gives something else when it is run by itself, and the same in a whole run."""

    class Changed(OwnModel):
        recording = False

        def record(self, tokens):
            self.recording = True
            try:
                return super().record(tokens)
            finally:
                self.recording = False

    right = getattr(OwnModel, step)

    def off(self, *args, **kwargs):
        found = right(self, *args, **kwargs)
        return found if self.recording else change(found)

    setattr(Changed, step, off)
    model = own()
    return Changed(model._weights, model.spec)


def scaled(found):
    return tuple(1.01 * one for one in found) if isinstance(found, tuple) else 1.01 * found


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_differs_from_the_whole_is_refused(step):
    verify(own())
    with pytest.raises(UnsupportedModelError, match=r"model 'own': .* differs by .* from what its own record has"):
        verify(changed(step, scaled))


def test_a_step_of_another_shape_and_one_that_fails_are_named():
    with pytest.raises(
        UnsupportedModelError, match=r"the embedding has shape \(2, 5, 32\); its own record has \(2, 6,"
    ):
        verify(changed("embedding", lambda found: found[:, :-1]))

    class Fails(OwnModel):
        def attend(self, *args):
            raise ZeroDivisionError("no such head")

    model = own()
    with pytest.raises(UnsupportedModelError, match=r"its step 'attend' raised ZeroDivisionError: no such head"):
        verify(Fails(model._weights, model.spec))


def test_it_is_verified_once_wherever_it_comes_in(monkeypatch):
    calls = []
    monkeypatch.setattr(verification, "verify", calls.append)
    model = own()
    for _ in range(2):
        load_model(model)
        score_edges(model, pairs(), "eap")
    assert calls == [model]
    score_edges(load("gpt2"), pairs(), "eap")
    assert calls == [model], "bridges are verified when they are loaded"
    monkeypatch.undo()
    for used in (load_model, lambda wrong: score_edges(wrong, pairs(), "eap"), lambda wrong: sweep(wrong, pairs())):
        with pytest.raises(UnsupportedModelError, match="differs by .* from what its own record has"):
            used(changed("attend", scaled))


def test_models_that_are_compared_or_have_no_references_are_verified_too(monkeypatch):
    class Compared(OwnModel):
        def __eq__(self, other):
            return type(other) is type(self)

        __hash__ = None

    calls = []
    monkeypatch.setattr(verification, "verify", calls.append)
    given = own()
    ones = [Compared(given._weights, given.spec) for _ in range(2)]
    for model in (*ones, *ones):
        load_model(model)
    assert [any(call is one for call in calls) for one in ones] == [True, True]
    assert len(calls) == 2
    monkeypatch.undo()
    assert np.isfinite(score_edges(ones[0], pairs(), "eap").values).all()
