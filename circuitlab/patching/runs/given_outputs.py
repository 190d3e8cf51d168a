"""Replacements that a function of the user gives: what every node writes to the stream instead, prompt by prompt.

The function is called once for all prompts of a length, when the replacement is resolved, so that what it returns is
checked before the work and does not depend on how prompts are packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.data.batch import PairBatch
from circuitlab.digests import sha256
from circuitlab.errors import CircuitLabError, ConfigError, UnknownNameError, in_one_line, shown
from circuitlab.models.protocol import Model
from circuitlab.parts import Kind, Layout, ModelSpec

# Of (model, batch of one prompt length): node name -> output [batch, seq, d_model].
AblationFunction = Callable[..., Mapping[str, Tensor]]
# By number of a writer: its outputs [batch, seq, d_model].
OfWriter = Callable[[int], Tensor]
Prompts = tuple[tuple[int, ...], ...]


class GivenOutputs:
    """What a function returned for the prompts of a data set.

    Args:
        name: What the ablation is called.
        function: The user's.
        model: A loaded model.
        batches: All prompts, one batch a length.

    Raises:
        ConfigError: The function raised, or returned something else than an output `[batch, seq, d_model]` of finite
            numbers for every node that writes.
        UnknownNameError: It names a node that the model does not have, or that does not write.
    """

    def __init__(self, name: str, function: AblationFunction, model: Model, batches: Sequence[PairBatch]) -> None:
        self._name, self.spec = name, model.spec
        self._tables = dict[int, tuple[Tensor, ...]]()
        self._rows = dict[Prompts, int]()
        for batch in batches:
            try:
                with torch.no_grad():
                    found = function(model, batch)
            except (CircuitLabError, KeyboardInterrupt):
                raise
            except BaseException as error:  # sys.exit() in a function of the user must not end the program
                raise ConfigError(f"ablation {name!r} raised {in_one_line(error)}") from error
            self._tables[batch.n_tokens] = _checked(name, found, model, batch)
            self._rows |= {prompts: row for row, prompts in enumerate(_prompts(batch))}

    def of(self, batch: PairBatch) -> OfWriter:
        """The outputs for some of the prompts, by number of the writer.

        Returns:
            A function from the number of a writer to outputs `[batch, seq, d_model]`, or None.
        """
        rows = [self._rows[prompts] for prompts in _prompts(batch)]
        index, table = torch.tensor(rows, device=batch.clean.device), self._tables[batch.n_tokens]
        return lambda writer: table[writer][index]

    def digest(self) -> str:
        """SHA-256 over the name and all outputs.

        Returns:
            64 hexadecimal digits.
        """
        return sha256(self._name, *(output for _, table in sorted(self._tables.items()) for output in table))


def layer_outputs(spec: ModelSpec, given: OfWriter, layer: int) -> Float[Tensor, "head batch seq d_model"]:
    """The outputs of the heads of a layer.

    Returns:
        One output a head, at every token.
    """
    layout = Layout.of(spec)
    heads = [n for n, node in enumerate(layout.writers) if node.kind is Kind.HEAD and node.layer == layer]
    return torch.stack([given(number) for number in heads])


def _prompts(batch: PairBatch) -> list[Prompts]:
    return list(zip(*([tuple(row) for row in getattr(batch, side).tolist()] for side in batch.sides), strict=True))


def _checked(name: str, found: Any, model: Model, batch: PairBatch) -> tuple[Tensor, ...]:
    names = [node.name for node in Layout.of(model.spec).writers]
    wanted = (*batch.clean.shape, model.spec.d_model)
    rule = f"it must return a mapping from node names to tensors [batch, seq, d_model], here {wanted}"
    if not isinstance(found, Mapping):
        raise ConfigError(f"ablation {name!r} returned {shown(found)}; {rule}.")
    for node in found:
        UnknownNameError.check("node that writes", node, names, owner=f"ablation {name!r}")
    if missing := [node for node in names if node not in found]:
        raise ConfigError(f"ablation {name!r} has no output for {', '.join(missing[:5])}; {rule}, for every node.")
    for node in names:
        value = found[node]
        if not torch.is_tensor(value) or tuple(value.shape) != wanted or not value.is_floating_point():
            got = f"{value.dtype} of shape {tuple(value.shape)}" if torch.is_tensor(value) else shown(value)
            raise ConfigError(f"ablation {name!r} gives {got} for {node}; {rule}.")
        if not bool(value.isfinite().all()):
            raise ConfigError(f"ablation {name!r} gives NaN or infinite values for {node}; its outputs must be finite.")
    return tuple(found[node].detach().to(batch.clean.device, model.dtype) for node in names)
