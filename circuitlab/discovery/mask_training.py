"""Masks learned by gradient descent over batches of examples; shared by edge pruning and UGS.

A step draws examples of one length (in proportion to the number of examples of each length), runs them through a soft
circuit, and takes each example's KL divergence from the whole model and its gradient with respect to the example's mask
in one backward pass. The model's weights do not change. Random draws depend on the seed and the number of the step
only, so that a run that was stopped gives the same result after it is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.declarations import Setting
from circuitlab.digests import named_sha256, sha256
from circuitlab.graphs.prune import real_edges
from circuitlab.metrics import resolve
from circuitlab.outputs.records import State, resume, save_state
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
KEPT = ("value", "step", "exp_avg", "exp_avg_sq")  # of each parameter, in the file
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
        # Lengths are not split to the budget, or draws would depend on it; a step that does not fit is split instead.
        recordings = experiment.recordings
        batches = recordings.by_length
        # A graph keeps about three tensors for every writer and reader.
        streams = 3 * (len(self.layout.writers) + len(self.layout.readers))
        self._at_once = min(
            rows_per_pack(self.model, batch.n_tokens, experiment.resources, streams) for batch in batches
        )
        baselines = map(recordings.baseline, batches)
        self._circuits = [SoftCircuit(self.model, baseline, experiment.ablated(baseline)) for baseline in baselines]

    def generator(self, step: int) -> torch.Generator:
        """The random generator of one step.

        Returns:
            A generator that depends on the seed and the step only.
        """
        text = f"{self.experiment.seed} {step}"
        return torch.Generator().manual_seed(int.from_bytes(bytes.fromhex(sha256(text))[:7], "little"))

    def draw(self, generator: torch.Generator) -> tuple[SoftCircuit, Int[Tensor, " chosen"]]:
        """Draw examples of one length.

        Returns:
            Their soft circuit, and their rows in it.
        """
        sizes = torch.tensor([len(circuit) for circuit in self._circuits], dtype=torch.float64)
        circuit = self._circuits[int(torch.multinomial(sizes, 1, generator=generator))]
        rows = torch.randperm(len(circuit), generator=generator)[: self._batch_size]
        return circuit, rows.sort().values.to(self.model.device)

    def noise(self, n: int, generator: torch.Generator) -> Float[Tensor, "{n} edge"]:
        """Uniform numbers inside (0, 1), one for every example and edge.

        Returns:
            One row an example.
        """
        u = torch.rand(n, int(self.edges.sum()), generator=generator, dtype=torch.float64)
        return u.clamp(1e-6, 1 - 1e-6).to(self.model.device, self.model.dtype)

    def gradients(
        self, circuit: SoftCircuit, rows: Int[Tensor, " chosen"], gates: Float[Tensor, "chosen edge"]
    ) -> tuple[Float[Tensor, " chosen"], Float[Tensor, "chosen edge"]]:
        """Each example's KL divergence from the whole model under its own gates, and the gradient by the gates.

        Gates and gradients are in the order of the entries of `edges`, row by row.

        Returns:
            KL divergence in nats, and its gradient in the order of the entries of `edges`, row by row.
        """
        parts = [self._gradients(circuit, rows[part], gates[part]) for part in packs(len(rows), self._at_once)]
        kl, gradient = zip(*parts, strict=True)
        return torch.cat(kl), torch.cat(gradient)

    @torch.enable_grad()
    def _gradients(self, circuit: SoftCircuit, rows: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        gates = gates.detach().requires_grad_()
        z = gates.new_zeros(len(rows), *self.edges.shape)
        z[:, torch.from_numpy(self.edges).to(z.device)] = gates
        kl = resolve("kl")(self.model.logits(circuit.final(z, rows)), circuit.baseline.batch.take(rows))
        (gradient,) = torch.autograd.grad(kl.sum(), gates)
        return kl.detach(), gradient

    def key(self, **settings: object) -> str:
        """Digest of model, examples and settings.

        Returns:
            The digest.
        """
        parts: dict[str, object] = {"weights": self.model.weights_sha256(), "spec": str(self.model.spec)}
        pairs = self.experiment.pairs
        for number, batch in enumerate([pairs] if isinstance(pairs, PairBatch) else pairs.batches("cpu")):
            for name in (*batch.sides, "answer_at"):
                parts[f"{name} {number}"] = getattr(batch, name)
        settings |= {"batch_size": self._batch_size, "seed": self.experiment.seed}
        if (replacement := self.experiment.replacement).kind != "corrupt":
            settings["replacement"] = replacement.fingerprint
        return named_sha256(parts | {f"setting {name}": value for name, value in settings.items()})

    def start(self, value: float) -> Float[Tensor, " edge"]:
        """The same number for every edge.

        Returns:
            A new tensor.
        """
        return torch.full((int(self.edges.sum()),), value, dtype=self.model.dtype, device=self.model.device)

    def as_matrix(self, values: Float[Tensor, " edge"]) -> Float[np.ndarray, "writer reader"]:
        """Numbers of edges as a matrix.

        Returns:
            The matrix; 0 where there is no edge.
        """
        out = np.zeros(self.edges.shape)
        out[self.edges] = values.detach().double().cpu().numpy()
        return out


class Training:
    """Gradient descent on numbers, one an edge, that can be stopped and resumed.

    Args:
        loss: The data set.
        method: Name of the method.
        parameters: The numbers by name; changed in place.
        checkpoint: File that keeps the state; None keeps nothing.
        ascending: Names of parameters that increase the loss.
        settings: All settings that the numbers depend on: `rate`, the step size of Adam, `updates`, the number of
            steps, and those of the method.

    Attributes:
        optimizer: Adam, of all parameters.
        step: Number of finished steps.
        curve: By column, a number for every step.
    """

    def __init__(
        self,
        loss: MaskLoss,
        method: str,
        parameters: Mapping[str, Tensor],
        checkpoint: str | None,
        ascending: Collection[str] = (),
        **settings: Any,
    ) -> None:
        self.parameters, self.step, self.curve = parameters, 0, dict[str, list[float]]()
        groups = [{"params": [value], "maximize": name in ascending} for name, value in parameters.items()]
        self.optimizer = torch.optim.Adam(groups, lr=settings["rate"])
        self._loss, self._method, self._updates = loss, method, int(settings["updates"])
        self._path = None if checkpoint is None else Path(checkpoint)
        self._key = "" if checkpoint is None else loss.key(method=method, **settings)

    def run(self, one_step: Callable[[], Mapping[str, float]]) -> None:
        """Take the remaining steps; the state is saved now and then, and at the end.

        Args:
            one_step: Sets the gradients of the parameters; returns numbers for the curve.

        Raises:
            RunError: The file is of another training, or damaged.
        """
        if self._path is not None:
            resume(self._path, JOB, self._key, self._take)
        while self.step < self._updates:
            noted = one_step()
            self.optimizer.step()
            self.step += 1
            for name, value in noted.items():
                self.curve.setdefault(name, []).append(float(value))
            if self.step % KEEP_EVERY == 0:
                self._save()
            self._loss.experiment.progress(self._method, self.step, self._updates)
        self._save()

    @property
    def last_kl(self) -> float:
        """Mean KL divergence of the last tenth of the steps."""
        return float(np.mean(self.curve["kl"][-max(1, self._updates // 10) :]))

    def _save(self) -> None:
        """Write everything, whole or not at all."""
        if self._path is None:
            return
        arrays = {f"curve {name}": np.array(column) for name, column in self.curve.items()}
        for name, value in self.parameters.items():
            state = {"value": value, **self.optimizer.state[value]}
            arrays |= {f"{name} {item}": _exact(tensor) for item, tensor in state.items()}
        save_state(self._path, State(job=JOB, key=self._key, numbers={"step": self.step}, arrays=arrays))

    @torch.no_grad()
    def _take(self, state: State) -> None:
        """Restore the state of a file."""
        for name, value in self.parameters.items():
            kept = {item: torch.from_numpy(state.arrays[f"{name} {item}"]).clone() for item in KEPT}
            value.copy_(kept.pop("value"))
            step = kept.pop("step")
            self.optimizer.state[value] = {"step": step, **{item: moment.to(value) for item, moment in kept.items()}}
        curves = {name: array for name, array in state.arrays.items() if name.startswith("curve ")}
        self.curve = {name.removeprefix("curve "): array.tolist() for name, array in curves.items()}
        self.step = state.numbers["step"]


def _exact(value: Tensor) -> np.ndarray:
    """The same numbers in a dtype that numpy has."""
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
