"""EAP over every edge against one bare forward plus one forward-and-backward pass, and the memory it takes.

`python -m benchmarks.eap '{"name": ...}' DEVICE` prints how many bytes it takes above the loaded model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.clock import in_turn
from benchmarks.findings import Finding, Unit, costs, seconds
from benchmarks.memory import memory_above
from benchmarks.models import Setup, Size, make
from benchmarks.per_cell import logit_diff
from circuitlab import PairBatch, score_edges
from circuitlab.discovery.scores import EdgeScores
from circuitlab.discovery.scoring import METHODS
from circuitlab.models.bridge import BridgeModel
from circuitlab.parts import Layout


def eap_scores(model: BridgeModel, batch: PairBatch) -> EdgeScores:
    """EAP: the gradient of the clean run, one backward pass."""
    return score_edges(model, batch, "eap") if "eap" in METHODS else score_edges(model, batch, "eap-ig", steps=1)


def attribution(setup: Setup, *, rounds: int, target: float | None, gigabytes: float | None) -> list[Finding]:
    """Time EAP and what it is made of in turn; measure its memory in a process of its own.

    Args:
        setup: Model and prompts.
        rounds: Rounds of the clock.
        target: EAP's time over a forward and a forward-and-backward pass.
        gigabytes: Memory above the loaded model that is allowed; None leaves it out.
    """
    model, batch = setup.model, setup.batch
    ways = {
        "ours": lambda: eap_scores(model, batch),
        "bare": lambda: model.whole_logits(batch.clean),
        "both": lambda: embedding_gradient(setup),
    }
    timings = in_turn(ways, rounds, str(model.device))
    bare, both = timings["bare"], timings["both"]
    detail = f"{seconds(timings['ours'])} against {seconds(bare)} forward and {seconds(both)} forward and backward"
    what = f"EAP over {Layout.of(model.spec).n_edges:,} edges, over a forward and a forward-and-backward pass"
    found = [costs(what, setup.what, timings["ours"], bare.plus(both), target=target, detail=detail)]
    if gigabytes is not None:
        found.append(
            Finding(
                what="Memory that EAP takes above the loaded model",
                on=setup.what,
                value=peak_of_eap(setup) / 1e9,
                unit=Unit.GIGABYTES,
                target=gigabytes,
                at_least=False,
                detail="resident, in a process of its own" if model.device.type == "cpu" else "allocated on the device",
            )
        )
    return found


def peak_of_eap(setup: Setup) -> int:
    """Bytes above the loaded model, measured in a process of its own."""
    command = [sys.executable, "-m", __name__, json.dumps(asdict(setup.size)), str(setup.model.device)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring memory failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def embedding_gradient(setup: Setup) -> Tensor:
    """One pass of the model with frozen weights and the gradient of the logit difference at the embedding."""
    bridge, batch = setup.model.bridge, setup.batch
    kept: list[Tensor] = []

    def leaf(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        stream = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_(True)
        kept.append(stream)
        return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

    handle = bridge.blocks[0].register_forward_pre_hook(leaf, with_kwargs=True)
    try:
        with torch.enable_grad():
            logits = bridge(batch.clean, return_type="logits", use_cache=False)
            total = logit_diff(logits, batch).sum()
            return torch.autograd.grad(total, kept[0])[0]
    finally:
        handle.remove()


def _main(size: str, device: str) -> None:
    setup = make(Size(**json.loads(size)), device)
    print(memory_above(lambda: eap_scores(setup.model, setup.batch), device))


if __name__ == "__main__":
    _main(*sys.argv[1:])
