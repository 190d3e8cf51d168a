"""Neurons of one MLP at three stages, by the model's own code: before the activation, after it, after a norm.

An MLP is run up to the stage and no further, or from the stage on; what comes before is not computed. Every change
is undone.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from jaxtyping import Float
from torch import Tensor

from circuitlab.errors import UnsupportedModelError
from circuitlab.models.anatomy import mlp_in, mlp_up, norm_inside, run_mlp
from circuitlab.models.families import Family
from circuitlab.models.surgery import ForwardStoppedError, first_tensor, forward_replaced, hooks
from circuitlab.parts import ModelSpec, Stage


def check_stage(bridge: Any, spec: ModelSpec, stage: Stage, *, whole: bool = False) -> None:
    """Refuse what the model's MLPs do not have.

    Args:
        bridge: The booted model.
        spec: Its shape.
        stage: The stage.
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
    if whole and len(mlp_in(block)) > 1:
        raise UnsupportedModelError(
            f"model {spec.name!r} has gated MLPs: a neuron is its gate's activation times another projection, which "
            "the pre-activation does not have. Use stage mid or post."
        )


def neurons_at(
    block: Any, normed: Float[Tensor, "1 row d_model"], stage: Stage, family: Family
) -> Float[Tensor, "1 row neuron"]:
    """The neurons of a block's MLP from its normed input; the rest of the MLP is not run.

    Returns:
        The neurons' values at the stage.
    """
    kept: list[Tensor] = []

    def keep(values: Tensor) -> None:
        kept.append(values)
        raise ForwardStoppedError

    inside = norm_inside(block)
    with hooks() as add, suppress(ForwardStoppedError):
        if stage is Stage.PRE:
            add.output(mlp_up(block), keep)
        elif stage is Stage.MID and inside is not None:
            add.input(inside, keep)
        else:
            # Where a bridge multiplies by folded weights itself, the projection is not called, only its hook.
            add.output(block.mlp.out.hook_in, keep)
        run_mlp(block, normed, family)
    return kept[0]


def from_neurons(
    block: Any, hidden: Float[Tensor, "1 row neuron"], stage: Stage, d_model: int, family: Family
) -> Float[Tensor, "1 row d_model"]:
    """The rest of a block's MLP from its neurons, its bias included and a post-norm not.

    Returns:
        What the MLP adds to the stream, before a post-norm.
    """
    if stage is Stage.PRE:
        dummy = hidden.new_zeros(()).expand(*hidden.shape[:-1], d_model)
        with forward_replaced(mlp_up(block), lambda *_args, **_kwargs: hidden):
            return run_mlp(block, dummy, family)
    inside = norm_inside(block)
    if stage is Stage.MID and inside is not None:
        hidden = first_tensor(inside(hidden))
    return first_tensor(block.mlp.out(hidden))
