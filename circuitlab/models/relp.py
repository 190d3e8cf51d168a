"""A model whose backward pass propagates relevance instead of gradients; its values stay the same to the bit.

Relevance is propagated by four rules, each a change of the graph of a value that stays as it is:

    norms        y = x / scale with the scale held fixed, so that relevance goes to the stream alone
    activations  act(z) = z * (act(z) / z) with the ratio held fixed
    gates        of a product gate * up each factor gets half
    attention    (optional) the pattern held fixed, so that relevance goes through the values alone

Projections, and attention without the last rule, keep their gradients; so does a softcap. Every value is the model's
own; the graph is built beside it and measured against it when the model is wrapped.

References:
    Jafari et al. 2025, arXiv:2508.21258 (RelP), whose rules are those of layer-wise relevance propagation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.errors import UnsupportedModelError
from circuitlab.models.anatomy import linear, mlp_in, mlp_norm, norm_of
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.comparison import allowed, relative
from circuitlab.models.modes import exclusive, ordinary_modes
from circuitlab.models.norms import NormForm, closest_form
from circuitlab.models.recording import BlockArguments
from circuitlab.models.surgery import forward_replaced, hooks, times

Norm = Callable[[Tensor], Tensor]

# Below it the ratio act(z) / z is taken as 0, as in the published code.
SMALLEST = 1e-6
PROBE_TOKENS = 5


@exclusive
class RelevanceModel(BridgeModel):
    """A bridge model with the rules above in its backward pass; everything else is the model's own.

    Args:
        model: The model; it is used, never changed.
        attention_rule: Hold attention patterns fixed too.

    Raises:
        UnsupportedModelError: A part is not of a form that the rules know; the measured number is in the message.
    """

    def __init__(self, model: Any, attention_rule: bool = False) -> None:
        if not isinstance(model, BridgeModel):
            raise UnsupportedModelError(
                f"relp changes the backward pass inside of a TransformerBridge's modules; {type(model).__name__} is "
                "none. Take eap or eap-ig."
            )
        self.__dict__.update(vars(model))
        self._attention_rule = attention_rule
        with self.lock, ordinary_modes():
            self.refuse_hooks("relp")
            self._apply_rules()

    def _apply_rules(self) -> None:
        def forms(what: str, of: Callable[[Any], Any]) -> list[NormForm]:
            return [_norm(self, of(block), f"the norm {what} {layer}") for layer, block in enumerate(self._blocks)]

        def ruled(norms: Sequence[Norm], forms: Sequence[NormForm]) -> tuple[Norm, ...]:
            return tuple(partial(_ruled, norm, form) for norm, form in zip(norms, forms, strict=True))

        before = forms("before attention", lambda block: norm_of(block, "ln1"))
        self._attn_norms = ruled(self._attn_norms, before)
        self._attn_pull_backs = tuple(partial(form.pull_back, fixed_scale=True) for form in before)
        self._attn_posts = ruled(self._attn_posts, forms("after attention", lambda block: norm_of(block, "ln1_post")))
        (self._final_norm,) = ruled([self._final_norm], [_norm(self, self.bridge.ln_final, "the final norm")])
        self._inner = [_inner_norms(self, block.attn, layer) for layer, block in enumerate(self._blocks)]
        if self.spec.has_mlp:
            self._before_mlp = forms("before MLP", lambda block: mlp_norm(block, self.spec))
            self._after_mlp = forms("after MLP", lambda block: norm_of(block, "ln2_post"))
            self._verify()

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "row query head d_head"],
        k: Float[Tensor, "row seq _ d_head"],
        v: Float[Tensor, "row seq _ d_head"],
        arguments: BlockArguments,
    ) -> Float[Tensor, "row query head d_head"]:
        """Every head's z from its queries, keys and values; see `Model`.

        Returns:
            Weighted sums of values `[row, query, head, d_head]`.
        """
        if self._attention_rule:
            q, k = q.detach(), k.detach()
        with ExitStack() as stack:
            for module, form in self._inner[layer]:
                stack.enter_context(forward_replaced(module, partial(_ruled_call, module.forward, form)))
            return super().attend(layer, q, k, v, arguments)

    def mlp_output(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What an MLP adds to the stream; see `Model`.

        Returns:
            Values of the shape of `stream`, in its units.
        """
        return _ruled(partial(super().mlp_output, layer), partial(self._mlp, layer), stream)

    def _mlp(self, layer: int, stream: Tensor) -> Tensor:
        block, normed = self._blocks[layer], self._before_mlp[layer](stream)
        hidden = self.mlp_hidden(layer, stream.detach())
        before = [_product(normed, part) for part in mlp_in(block)]
        # Of a product each factor gets half: the ratio to a factor is what the others made of it.
        shared = [factor * _ratio(hidden, factor) / len(before) for factor in before]
        out = self._after_mlp[layer](_product(sum(shared[1:], shared[0]), block.mlp.out))
        return times(out, self.family.residual_multiplier)

    @torch.no_grad()
    def _verify(self) -> None:
        """Measure the graphs of MLPs against the values that they belong to, on random streams."""
        generator = torch.Generator().manual_seed(0)
        stream = torch.randn(PROBE_TOKENS, self.spec.d_model, generator=generator, dtype=torch.float32).to(
            self.device, self.dtype
        )
        for layer in range(self.spec.n_layers):
            _check_neurons(self, layer, stream)
            difference = relative(self._mlp(layer, stream), super().mlp_output(layer, stream))
            if not difference <= allowed(self):
                why = f"its parts give values {difference:.2g} of the largest away from its own"
                raise _unknown_form(self, f"MLP {layer}", why)


class _Valued(torch.autograd.Function):
    """One tensor's bits with another one's graph."""

    @staticmethod
    def forward(_ctx: Any, graph: Tensor, value: Tensor) -> Tensor:
        assert graph.shape == value.shape
        return value.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: Any) -> tuple[Any, None]:
        return gradients[0], None


def _ruled(forward: Norm, rule: Norm, stream: Tensor) -> Tensor:
    """The model's own value, with the graph of a rule where gradients are on."""
    with torch.no_grad():
        value = forward(stream)
    return _Valued.apply(rule(stream), value) if torch.is_grad_enabled() else value  # pyright: ignore[reportReturnType]


def _ruled_call(forward: Callable[..., Tensor], rule: Norm, stream: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _ruled(lambda values: forward(values, *args, **kwargs), rule, stream)


def _norm(model: BridgeModel, module: Any, what: str) -> NormForm:
    """The norm by its parts, if they give its own values on a probe."""
    like = next(model.bridge.original_model.parameters())
    form, difference = closest_form(module, like, model.spec.d_model)
    if difference > allowed(model):
        why = f"no layer norm and no RMS norm gives its values (closest: {difference:.2g} of the largest away)"
        raise _unknown_form(model, what, why)
    return form


def _inner_norms(model: BridgeModel, attn: Any, layer: int) -> list[tuple[Any, NormForm]]:
    """Norms on queries and keys, inside the attention code."""
    modules = {name: getattr(attn, name, None) for name in ("q_norm", "k_norm")}
    there = {name: module for name, module in modules.items() if isinstance(module, torch.nn.Module)}
    return [(module, _norm(model, module, f"the {name} of layer {layer}")) for name, module in there.items()]


def _product(values: Tensor, module: Any) -> Tensor:
    weight, bias = linear(module)
    out = values @ weight.detach()
    return out if bias is None else out + bias.detach()


def _ratio(hidden: Tensor, factor: Tensor) -> Tensor:
    """What a factor is multiplied with to give the neuron, held fixed."""
    factor = factor.detach()
    small = factor.abs() < SMALLEST
    return torch.where(small, 0.0, hidden / torch.where(small, 1.0, factor))


def _check_neurons(model: BridgeModel, layer: int, stream: Tensor) -> None:
    """Refuse activations that mix neurons: moving what goes into the first must move it and no other."""
    still = model.mlp_hidden(layer, stream)
    bump = torch.zeros_like(still[0])
    bump[0] = 1.0
    for module in mlp_in(model.bridge.blocks[layer]):
        with hooks() as add:
            add.output(module, lambda before: before + bump)
            moved = (model.mlp_hidden(layer, stream) - still).abs() / still.abs().max()
        first, others = float(moved[..., 0].max()), float(moved[..., 1:].max())
        if first == 0 or others > allowed(model):
            moves = f"moving the input of the first moves it by {first:.2g} and another by {others:.2g} of the largest"
            why = f"its activation is not of each neuron alone ({moves})"
            raise _unknown_form(model, f"MLP {layer}", why)


def _unknown_form(model: BridgeModel, what: str, measured: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"relp has no rule for {what} of model {model.id!r}: {measured}. Take eap or eap-ig, which need none."
    )
