"""Every scoring method on every model with a known circuit: `python -m benchmarks.truth` writes docs/known-circuits.md.

The true edges come from the programs, the scores from the methods as `score_edges` runs them by default, and the two
meet in `recovery`. Under other replacements than the corrupted prompt's values only methods that take one are run;
exact edge patching does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.table import as_markdown, write_generated
from circuitlab import (
    CircuitLabError,
    CompiledModel,
    compile_model,
    compiled_models,
    patch_edges,
    recovery,
    score_edges,
)
from circuitlab.discovery.scoring import METHODS
from circuitlab.evaluation.truth import Recovery
from circuitlab.graphs.circuit import Circuit
from circuitlab.parts import Layout

PAGE = Path(__file__).parent.parent / "docs" / "known-circuits.md"
PICTURES = PAGE.parent / "images"
REPLACEMENTS = {
    "corrupt": "the corrupted prompt's values",
    "zero": "zero",
    "mean": "the mean over all tokens of other prompts",
}
NORMS = {False: "without layer norm", True: "with layer norm"}
# These see every edge's own effect, so where no path is redundant nothing but 1 will do.
MUST_BE_PERFECT = ("exact", "acdc")
# A score of at most this share of the largest is no finding: rounding, what soft attention leaves, a norm that moves.
TOLERANCE = 1e-3
# Scores closer than this share of the largest tie: they differ by rounding, which depends on the processor.
ROUNDING = 1e-12
Refused = str


@dataclass(frozen=True, slots=True)
class Found:
    """How well scores find the true edges, by their order alone and with small ones counted as 0."""

    plain: Recovery
    tolerant: Recovery


Scored = Found | Refused


@dataclass(frozen=True, slots=True)
class Case:
    """One method on one model."""

    method: str
    model: str
    norm: bool
    ablation: str


def judged(case: Case, **options: Any) -> Scored:
    """How well a method finds the true edges, or why it does not run."""
    model, method = built(case.model, case.norm), METHODS[case.method]
    pairs, circuit = model.pairs(), truth(case)
    more: dict[str, Any] = dict(options)
    if case.ablation != "corrupt":
        more |= {"ablation": case.ablation}
        more |= {"reference": model.reference(pairs)} if case.ablation.startswith("mean") else {}
    try:
        if case.ablation != "corrupt" and not takes_ablation(case.method):
            values = _exact(circuit, model, more)
        else:
            values = score_edges(model.model, pairs, method.name, **more).values
        values = rounded(values)
        plain, tolerant = (
            recovery(circuit.spec, values, circuit.mask, tolerance=tolerance) for tolerance in (0.0, TOLERANCE)
        )
        return Found(plain, tolerant)
    except CircuitLabError as error:
        return str(error)


def rounded(values: np.ndarray) -> np.ndarray:
    """Scores as shares of the largest, without what rounding alone left: 1e-16 is 0, 0.5 and 0.5 + 1e-16 tie."""
    largest = np.abs(values).max()
    return np.round(values / largest / ROUNDING) * ROUNDING if largest else values


def falls_short(case: Case, found: Scored) -> bool:
    """Whether it is a method that must be perfect here, and is not."""
    if case.method not in MUST_BE_PERFECT or built(case.model, case.norm).entry.redundant:
        return False
    return isinstance(found, Refused) or found.plain.auroc < 1


def takes_ablation(name: str) -> bool:
    """Whether a method scores under other replacements than the corrupted prompt's values."""
    return "ablation" in getattr(METHODS[name], "takes", ())


def cases(names: Iterable[str], models: Iterable[str]) -> list[Case]:
    """Everything that is run."""
    return [
        Case(method, model, norm, ablation)
        for ablation in REPLACEMENTS
        for norm in NORMS
        for method in names
        for model in models
        if ablation == "corrupt" or method == "exact" or takes_ablation(method)
    ]


@cache
def built(name: str, norm: bool) -> CompiledModel:
    """The model, compiled once."""
    return compile_model(name, norm=norm)


@cache
def truth(case: Case) -> Circuit:
    """Its true circuit."""
    return built(case.model, case.norm).truth(case.ablation)


def tables(found: Mapping[Case, Scored]) -> str:
    """The generated part of the page."""
    parts = ["### The true edges", _edges({case.model: None for case in found})]
    for ablation, what in REPLACEMENTS.items():
        for norm, norms in NORMS.items():
            part = {case: value for case, value in found.items() if (case.ablation, case.norm) == (ablation, norm)}
            if part:
                parts += [f"### Ablation: {what}; models {norms}"]
                parts += ["AUROC, with a 95 % interval over edges unless it is 1:", _table(part, _auroc)]
                parts += [
                    f"AUROC with scores of at most {TOLERANCE:g} of the largest set to 0:",
                    _table(part, _tolerant),
                ]
                parts += ["Average precision:", _table(part, _precision)]
    if refused := _refused(found):
        parts += ["### Unsupported", refused]
    return "\n\n".join(parts)


def _auroc(found: Found) -> str:
    return _with_interval(found.plain)


def _tolerant(found: Found) -> str:
    return _with_interval(found.tolerant)


def _with_interval(found: Recovery) -> str:
    low, high = found.auroc_interval
    return "**1**" if found.auroc == 1 else f"{found.auroc:.3f} [{low:.2f}, {high:.2f}]"


def _precision(found: Found) -> str:
    precision = found.plain.average_precision
    return "**1**" if precision == 1 else f"{precision:.3f}"


def _table(found: Mapping[Case, Scored], shown: Callable[[Found], str]) -> str:
    methods, models = (list(dict.fromkeys(getattr(case, part) for case in found)) for part in ("method", "model"))
    values = {(case.method, case.model): value for case, value in found.items()}
    rows = []
    for method in methods:
        by_model = [values[method, model] for model in models]
        rows.append([f"`{method}`", *("refused" if isinstance(value, Refused) else shown(value) for value in by_model)])
    circuits = [truth(next(case for case in found if case.model == model)) for model in models]
    sizes = [f"{circuit.n_edges} of {circuit.layout.n_edges}" for circuit in circuits]
    header = [f"{model} ({size})" for model, size in zip(models, sizes, strict=True)]
    return as_markdown(["Method", *header], rows)


def _edges(models: Iterable[str]) -> str:
    """The true edges of each model: under the corrupted prompt's values, and what zero adds."""
    rows = []
    for model in models:
        first, more = (
            {edge.name for edge, _ in truth(Case("exact", model, False, ablation)).edges()}
            for ablation in ("corrupt", "zero")
        )
        in_order = [edge.name for edge in Layout.of(built(model, False).model.spec).edges()]
        listed = [
            ", ".join(f"`{name}`" for name in in_order if name in names) or "none" for names in (first, more - first)
        ]
        rows.append([f"`{model}`", *listed])
    return as_markdown(["Model", "With the corrupted prompt's values", "Additional edges with zero or a mean"], rows)


def _refused(found: Mapping[Case, Scored]) -> str:
    reasons = {f"`{case.method}`: {value}": None for case, value in found.items() if isinstance(value, Refused)}
    return "\n".join(f"- {reason}" for reason in reasons)


def _exact(circuit: Circuit, model: CompiledModel, options: Mapping[str, Any]) -> np.ndarray:
    """Every edge patched alone under another replacement."""
    found = patch_edges(model.model, model.pairs(), direction="noise", **options)
    values = np.zeros(circuit.mask.shape)
    for edge, value in zip(found.edges, found.values[:, 0], strict=True):
        values[circuit.layout.edge_index(edge)] = value
    return values


def main() -> int:
    """Score everything, write the page, and say what falls short."""
    torch.set_num_threads(1)
    found = dict[Case, Scored]()
    for case in cases(METHODS, compiled_models()):
        found[case] = judged(case)
        print(case.ablation, case.model, NORMS[case.norm], case.method, file=sys.stderr)
    write_generated(PAGE, "recovery", tables(found))
    for name in compiled_models():
        figure = truth(Case("exact", name, False, "corrupt")).plot(title=name)
        figure.savefig(PICTURES / f"known-{name}.png", dpi=80, metadata={"Software": None})
    print(f"written to {os.path.relpath(PAGE)}")
    short = [case for case, value in found.items() if falls_short(case, value)]
    for case in short:
        print(f"falls short of AUROC 1: {case.method} on {case.model}, {NORMS[case.norm]}, under {case.ablation}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
