"""What more is known of the circuit: whether it is complete and minimal, and whether other prompts give the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuitlab.report.folder import Repeated, RunFolder
from circuitlab.report.markup import Html, counted, element, facts, interval, joined, number, percent, table
from circuitlab.report.pictures import bitmap

_N_EDGES = 8
_BOOTSTRAP = "bootstrap resamples of the discovery pairs"
_DRAWN = "The circuit, each edge drawn by how often it was chosen."


def completeness(run: RunFolder) -> Html | None:
    """Does the rest of the model do it too, and is every edge needed? None for runs that did not ask."""
    found, edges = run.evaluation.get("completeness"), run.evaluation.get("minimality")
    if not isinstance(found, Mapping):
        return None
    parts = found.get("knockouts") or ()
    return element(
        "section",
        element("h2", "Is it all of it, and nothing but it?"),
        facts(
            (
                ("the model without the circuit", f"{number(found.get('complement_faithfulness'), 3)} faithful"),
                (
                    "under the same knockouts",
                    f"circuit and model differ by {number(found.get('incompleteness'), 3)} on average, "
                    f"{number(found.get('incompleteness_max'), 3)} at most ({counted(len(parts), 'random part')} out)"
                    if parts
                    else "",
                ),
            )
        ),
        element(
            "p",
            "Complete: without the circuit's edges the model should fall to 0, and with the same edges taken out "
            "circuit and model should do the same.",
            class_="note",
        ),
        _least_needed(edges) if isinstance(edges, list) and edges else None,
    )


def _least_needed(edges: Sequence[Mapping[str, Any]]) -> Html:
    """The edges that the circuit would miss least."""
    ranked = sorted(edges, key=lambda edge: edge["effect"])
    idle = sum(edge["ci"][0] <= 0 for edge in edges)
    words = (
        f"Minimal: without an edge the circuit's faithfulness should fall. For {idle} of "
        f"{counted(len(edges), 'edge')} the 95 % interval reaches 0 or below. Those missed least:"
    )
    rows = [
        (element("code", edge["edge"]), number(edge["effect"], 3), interval(edge["ci"], 3))
        for edge in ranked[:_N_EDGES]
    ]
    return joined(
        element("p", words, class_="note"),
        table(("without this edge", "faithfulness lost", ""), rows, numbers=(1, 2), name="minimality"),
    )


def stability(run: RunFolder) -> Html | None:
    """Do other prompts give the same circuit? None for runs that did not ask."""
    parts = [_repeated(one) for one in run.repeated]
    return element("section", element("h2", "Would other prompts give the same circuit?"), *parts) if parts else None


def _repeated(one: Repeated) -> Html:
    found, sizes = one.numbers, one.numbers.get("n_edges") or {}
    ever, always = found.get("n_edges_ever"), found.get("n_edges_always")
    what = "other seeds, each with prompts of its own" if found.get("over") == "seeds" else _BOOTSTRAP
    lines = [
        ("repetitions", f"{found.get('n', 0):,} {what}"),
        ("mean Jaccard index", f"{number(found.get('jaccard_mean'), 3)} between two of them"),
        ("coefficient of variation", number(found.get("jaccard_cv"), 3)),
        ("with this circuit", number(found.get("jaccard_to_circuit"), 3)),
        ("edges", f"{sizes.get('min'):,} to {sizes.get('max'):,}" if sizes else ""),
        ("chosen always", f"{always:,} of {ever:,} that were ever chosen ({percent(always / ever)})" if ever else ""),
    ]
    picture = bitmap(one.png, _DRAWN) if one.png else None
    return joined(facts(lines), element("figure", element("div", picture, class_="scroll")) if picture else None)
