"""The whole benchmark: what is measured, how often, and where the table goes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.acdc import searches
from benchmarks.circuits import circuit_runs
from benchmarks.clock import machine
from benchmarks.eap import attribution
from benchmarks.edges import exact_edges
from benchmarks.findings import Finding
from benchmarks.methods import seconds_of_methods
from benchmarks.models import FOUR_LAYERS, GPT2_SMALL, Size, make
from benchmarks.sweeps import standard_sweeps, values_agree
from benchmarks.table import performance_page, print_findings, write_generated

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
PARTS = ("sweeps", "eap", "edges", "circuits", "acdc", "methods")
TITLES = {
    "sweeps": "Sweeps",
    "eap": "Edge attribution",
    "edges": "Exact edges",
    "circuits": "Circuits",
    "acdc": "ACDC",
    "methods": "Methods",
}
# What we want to reach, on a CPU: times faster than one pass a cell or an edge, share of the matmul rate, passes,
# gigabytes, bare passes a circuit, times cheaper in a batch. A GPU waits for Python in the one-pass-a-cell way.
CPU_SWEEPS = {GPT2_SMALL.name: 12.0, FOUR_LAYERS.name: 20.0}
GPU_SWEEPS = {GPT2_SMALL.name: 100.0, FOUR_LAYERS.name: 100.0}
RATE, PASSES, GIGABYTES, EDGES, CIRCUITS, QUESTIONS = 0.60, 1.0, 1.2, 10.0, (1.0, 2.0), 8.0
CIRCUIT_SIZES = (200, 100, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        large: The GPT-2-small-sized model and its prompts.
        small: The four-layer model and its prompts.
        rounds: Rounds of the clock; things that take a second or less get twice as many.
        per_site: Sampled cells of each site in a round, of the large and the small model.
        edges: Exact edges that are compared.
        together: Circuits in one batch.
        alone: Random circuits of each size that are run one by one.
        exact_prompts: Prompts of the float64 comparison on the large model.
        method_pairs: Pairs of a task that every method scores on the bundled model.
    """

    large: Size
    small: Size
    rounds: int
    per_site: tuple[int, int]
    edges: int
    together: int
    alone: int
    exact_prompts: int
    method_pairs: int = 30

    @property
    def more_rounds(self) -> int:
        """For what takes a second or less."""
        return 2 * self.rounds


FULL = Plan(
    large=GPT2_SMALL, small=FOUR_LAYERS, rounds=3, per_site=(4, 16), edges=40, together=32, alone=5, exact_prompts=2
)
QUICK = Plan(
    large=GPT2_SMALL.of(1),
    small=FOUR_LAYERS.of(8),
    rounds=1,
    per_site=(2, 4),
    edges=10,
    together=4,
    alone=1,
    exact_prompts=1,
    method_pairs=4,
)


def measure(part: str, plan: Plan, device: str) -> list[Finding]:
    """The findings of one part."""
    if part == "sweeps":
        return _sweeps(plan, device)
    if part == "eap":
        setup = make(plan.large, device)
        return attribution(setup, rounds=plan.more_rounds, target=PASSES, gigabytes=GIGABYTES)
    if part == "edges":
        return exact_edges(make(plan.small, device), rounds=plan.more_rounds, sample=plan.edges, target=EDGES)
    if part == "acdc":
        return searches(make(plan.small, device), rounds=plan.rounds, target=QUESTIONS)
    if part == "methods":
        return seconds_of_methods(make(plan.large, device), rounds=plan.rounds, pairs=plan.method_pairs)
    return circuit_runs(
        make(plan.large, device),
        rounds=plan.more_rounds,
        sizes=CIRCUIT_SIZES,
        n_together=plan.together,
        n_alone=plan.alone,
        targets=CIRCUITS,
    )


def _sweeps(plan: Plan, device: str) -> list[Finding]:
    targets = GPU_SWEEPS if device.startswith("cuda") else CPU_SWEEPS
    found = []
    for size, per_site, rounds, share in (
        (plan.large, plan.per_site[0], plan.rounds, RATE),
        (plan.small, plan.per_site[1], plan.more_rounds, None),
    ):
        setup = make(size, device)
        found += standard_sweeps(setup, rounds=rounds, per_site=per_site, target=targets[size.name], share=share)
    for size, per_site in ((plan.large.of(plan.exact_prompts), plan.per_site[0]), (plan.small, plan.per_site[1])):
        found.append(values_agree(make(size, device, torch.float64), per_site))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page; with --only, print alone."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone (may be repeated); not written")
    parser.add_argument("--rounds", type=int, help="rounds of the clock, 3 by default")
    parser.add_argument("--quick", action="store_true", help="few prompts, one round: does everything run?")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page that gets the table")
    given = parser.parse_args(arguments)
    plan = QUICK if given.quick else FULL
    rounds = plan.rounds if given.rounds is None else given.rounds
    if rounds < 1:
        parser.error(f"--rounds is {rounds}; at least 1 is needed.")
    plan = replace(plan, rounds=rounds)
    facts, sections = machine(given.device), {}
    for part in given.only or PARTS:
        start = perf_counter()
        sections[TITLES[part]] = measure(part, plan, given.device)
        print_findings(TITLES[part], sections[TITLES[part]], judged=not given.quick)
        print(f"{perf_counter() - start:.0f} s\n", file=sys.stderr)
    if given.only:
        return 0
    words = ["python -m benchmarks", *(arguments if arguments is not None else sys.argv[1:])]
    text = performance_page(" ".join(words), facts, sections, rounds, given.quick)
    write_generated(given.out, given.device.partition(":")[0], text)
    print(f"written to {os.path.relpath(given.out)}")
    return 0
