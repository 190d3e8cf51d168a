"""Learn numbers, one an edge, by gradient descent over batches of examples: what edge pruning and UGS share.

A step draws examples of one length (a length as often as it has examples), runs them through a soft circuit, takes the
KL divergence from the whole model of each, and its gradient with respect to each example's mask in one backward pass.
The model's own weights take no part. What is drawn in a step depends on the seed and the number of the step alone, so
that a run that was stopped goes on from its file as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.declarations import Setting
from circuitlab.digests import named_sha256, sha256
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.outputs.state import State, resume, save_state
from circuitlab.parts import Layout
from circuitlab.patching.circuits.soft_circuit import SoftCircuit
from circuitlab.patching.experiment import Experiment
from circuitlab.patching.runs.packing import packs, rows_per_pack

# Options of the methods that learn.
Updates = Annotated[int, Setting(what="steps of learning", least=1, most=1_000_000)]
Rate = Annotated[float, Setting(what="step size", above=0)]
BatchSize = Annotated[int, Setting(what="examples a step", least=1, most=100_000)]
Checkpoint = Annotated[str | None, Setting(what="file that keeps the state, to stop and resume")]
JOB = "training"
# Steps between two versions of the file.
KEEP_EVERY = 25


class MaskLoss:
    """A data set as soft circuits.

    Args:
        experiment: The examples.
        batch_size: Examples a step.

    Raises:
        ConfigError: A size out of range, or a budget that holds no prompt.
    """

    def __init__(self, experiment: Experiment, batch_size: int) -> None:
        self.experiment, self.model, self.layout = experiment, experiment.model, Layout.of(experiment.model.spec)
        self.edges: Bool[np.ndarray, "writer reader"] = real_edges(self.layout)
        self._batch_size = batch_size
        # Lengths are not split to the budget, or what is drawn would depend on it; a step is, where it does not fit.
        recordings = experiment.recordings
        batches = recordings.by_length
        # A graph keeps about three tensors for every writer and reader.
        streams = 3 * (len(self.layout.writers) + len(self.layout.readers))
        self._at_once = min(
            rows_per_pack(self.model, batch.n_tokens, experiment.resources, streams) for batch in batches
        )
        self._circuits = [SoftCircuit(self.model, recordings.baseline(batch)) for batch in batches]

    def generator(self, step: int) -> torch.Generator:
        """Of what is drawn in one step."""
        text = f"{self.experiment.seed} {step}"
        return torch.Generator().manual_seed(int.from_bytes(bytes.fromhex(sha256(text))[:7], "little"))

    def draw(self, generator: torch.Generator) -> tuple[SoftCircuit, Int[Tensor, " chosen"]]:
        """Examples of one length."""
        sizes = torch.tensor([len(circuit) for circuit in self._circuits], dtype=torch.float64)
        circuit = self._circuits[int(torch.multinomial(sizes, 1, generator=generator))]
        rows = torch.randperm(len(circuit), generator=generator)[: self._batch_size]
        return circuit, rows.sort().values.to(self.model.device)

    def noise(self, n: int, generator: torch.Generator) -> Float[Tensor, "{n} edge"]:
        """Uniform numbers inside (0, 1), one for every example and edge."""
        u = torch.rand(n, int(self.edges.sum()), generator=generator, dtype=torch.float64)
        return u.clamp(1e-6, 1 - 1e-6).to(self.model.device, self.model.dtype)

    def slopes(
        self, circuit: SoftCircuit, rows: Int[Tensor, " chosen"], gates: Float[Tensor, "chosen edge"]
    ) -> tuple[Float[Tensor, " chosen"], Float[Tensor, "chosen edge"]]:
        """Each example's KL divergence from the whole model under its own gates, and its gradient with respect to them.

        Gates and gradients stand in the order of the entries of `edges`, row by row.
        """
        parts = [self._slopes(circuit, rows[part], gates[part]) for part in packs(len(rows), self._at_once)]
        kl, slope = zip(*parts, strict=True)
        return torch.cat(kl), torch.cat(slope)

    @torch.enable_grad()
    def _slopes(self, circuit: SoftCircuit, rows: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        gates = gates.detach().requires_grad_()
        z = gates.new_zeros(len(rows), *self.edges.shape)
        z[:, torch.from_numpy(self.edges).to(z.device)] = gates
        kl = resolve("kl")(self.model.logits(circuit.final(z, rows)), circuit.baseline.batch.take(rows))
        (slope,) = torch.autograd.grad(kl.sum(), gates)
        return kl.detach(), slope

    def as_matrix(self, values: Float[Tensor, " edge"]) -> Float[np.ndarray, "writer reader"]:
        """One number an edge, by the numbers of the layout; 0 where there is no edge."""
        out = np.zeros(self.edges.shape)
        out[self.edges] = values.detach().double().cpu().numpy()
        return out


@dataclass(slots=True, kw_only=True, eq=False)
class Training:
    """Parameters on their way, and what was noted of every step.

    Attributes:
        parameters: By name; changed in place.
        optimizers: Each the Adam of some of them, in a fixed order.
        path: File that the state is kept in; None keeps nothing.
        key: Digest of everything that the numbers depend on.
        step: Steps that are done.
        curve: By column, a number for every step.
    """

    parameters: Mapping[str, Tensor]
    optimizers: Sequence[torch.optim.Optimizer]
    path: Path | None
    key: str
    step: int = 0
    curve: dict[str, list[float]] = field(default_factory=dict)

    def note(self, **values: float) -> None:
        """A step is done; keep its numbers, and now and then everything."""
        self.step += 1
        for name, value in values.items():
            self.curve.setdefault(name, []).append(float(value))
        if self.path is not None and self.step % KEEP_EVERY == 0:
            self.save()

    def save(self) -> None:
        """Write everything, whole or not at all."""
        if self.path is None:
            return
        arrays = {f"parameter {name}": _exact(value) for name, value in self.parameters.items()}
        for number, optimizer in enumerate(self.optimizers):
            for place, state in optimizer.state_dict()["state"].items():
                arrays |= {f"optimizer {number} {place} {name}": _exact(value) for name, value in state.items()}
        arrays |= {f"curve {name}": np.array(column) for name, column in self.curve.items()}
        save_state(self.path, State(job=JOB, key=self.key, numbers={"step": self.step}, arrays=arrays))

    def resume(self) -> None:
        """Take over what the file holds, if there is one.

        Raises:
            RunError: It is of another training, or damaged.
        """
        if self.path is not None:
            resume(self.path, JOB, self.key, self._take)

    @torch.no_grad()
    def _take(self, state: State) -> None:
        for name, value in self.parameters.items():
            value.copy_(torch.from_numpy(state.arrays[f"parameter {name}"]))
        found: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        for name, array in state.arrays.items():
            kind, _, rest = name.partition(" ")
            if kind == "curve":
                self.curve[rest] = array.tolist()
            elif kind == "optimizer":
                number, place, item = rest.split(" ")
                found[int(number)].setdefault(int(place), {})[item] = torch.from_numpy(array)
        for optimizer, states in zip(self.optimizers, found, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        self.step = state.numbers["step"]


def _exact(value: Tensor) -> np.ndarray:
    """The same numbers in a dtype that numpy has."""
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def training_key(loss: MaskLoss, settings: Mapping[str, object]) -> str:
    """Digest of model, examples and settings."""
    parts: dict[str, object] = {"weights": loss.model.weights_sha256(), "spec": str(loss.model.spec)}
    pairs = loss.experiment.pairs
    batches = [pairs] if isinstance(pairs, PairBatch) else pairs.batches("cpu")
    for number, batch in enumerate(batches):
        for name in ("clean", "corrupt", "answer_at"):
            parts[f"{name} {number}"] = getattr(batch, name)
    return named_sha256(parts | {f"setting {name}": value for name, value in settings.items()})
