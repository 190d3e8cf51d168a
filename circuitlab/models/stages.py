"""Neurons of one MLP at three stages, by the model's own code: before the activation, behind it, behind a norm.

An MLP is run up to the stage and no further, or from the stage on; what stands before is not computed. Nothing is left
behind.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from jaxtyping import Float
from torch import Tensor

from circuitlab.errors import UnsupportedModelError
from circuitlab.models.anatomy import mlp_down, mlp_gate, mlp_up, norm_inside, run_mlp
from circuitlab.models.families import Family
from circuitlab.models.surgery import EnoughError, first_tensor, forward_replaced, hooks
from circuitlab.parts import ModelSpec, Stage


def check_stage(bridge: Any, spec: ModelSpec, stage: Stage, *, whole: bool = False) -> None:
    """Refuse what the model's MLPs do not have.

    Args:
        bridge: The booted model.
        spec: Its shape.
        stage: The stage asked for.
        whole: Whether the rest of the MLP is to follow from the neurons at this stage.

    Raises:
        UnsupportedModelError: The model has no MLPs, or their pre-activations are not shown or not enough.
    """
    if not spec.has_mlp:
        raise UnsupportedModelError(f"model {spec.name!r} has no MLPs, so that it has no neurons.")
    if stage is not Stage.PRE:
        return
    block = bridge.blocks[0]
    if mlp_up(block) is None:
        raise UnsupportedModelError(
            f"model {spec.name!r} does not run its MLPs' input projection as a module of its own, so that there are no "
            "pre-activations. Use stage mid or post."
        )
    if whole and mlp_gate(block) is not None:
        raise UnsupportedModelError(
            f"model {spec.name!r} has gated MLPs: a neuron is its gate's activation times another projection, which "
            "the pre-activation does not say. Use stage mid or post."
        )


def neurons_at(
    block: Any, normed: Float[Tensor, "1 row d_model"], stage: Stage, family: Family
) -> Float[Tensor, "1 row neuron"]:
    """The neurons of a block's MLP from its normed input; the rest of the MLP is not run."""
    kept: list[Tensor] = []

    def keep(values: Tensor) -> None:
        kept.append(values)
        raise EnoughError

    inside = norm_inside(block)
    with hooks() as add, suppress(EnoughError):
        if stage is Stage.PRE:
            add.output(_shown(mlp_up(block)), keep)
        elif stage is Stage.MID and inside is not None:
            add.input(inside, keep)
        else:
            # Where a bridge multiplies by folded weights itself, the projection is not called, only its hook.
            add.output(mlp_down(block).hook_in, keep)
        run_mlp(block, normed, family)
    return kept[0]


def from_neurons(
    block: Any, hidden: Float[Tensor, "1 row neuron"], stage: Stage, d_model: int, family: Family
) -> Float[Tensor, "1 row d_model"]:
    """The rest of a block's MLP from its neurons, its bias included and a post-norm not."""
    if stage is Stage.PRE:
        dummy = hidden.new_zeros(()).expand(*hidden.shape[:-1], d_model)
        with forward_replaced(_shown(mlp_up(block)), lambda *_args, **_kwargs: hidden):
            return run_mlp(block, dummy, family)
    inside = norm_inside(block)
    if stage is Stage.MID and inside is not None:
        hidden = first_tensor(inside(hidden))
    return first_tensor(mlp_down(block)(hidden))


def _shown(projection: Any) -> Any:
    assert projection is not None, "asked only where check_stage has seen it"
    return projection
