"""A model whose backward pass propagates relevance: the same values to the bit, other slopes.

Relevance is handed back by four rules, each a change of the graph behind a value that stays as it is:

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

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.errors import UnsupportedModelError
from circuitlab.models.anatomy import attn_norm, linear, mlp_down, mlp_norm, projection
from circuitlab.models.bridge import BridgeModel
from circuitlab.models.comparison import TOLERANCE
from circuitlab.models.exclusive import exclusive
from circuitlab.models.modes import ordinary_modes
from circuitlab.models.recording import BlockArguments
from circuitlab.models.surgery import forward_replaced, hooks, times
from circuitlab.parts import Slot

# Below it the ratio act(z) / z is taken as 0, as in the published code.
SMALLEST = 1e-6
PROBE_TOKENS = 5


@exclusive
class RelevanceModel:
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
        self._model, self._attention_rule, self.lock = model, attention_rule, model.lock
        with self.lock, ordinary_modes():
            self._prepare()

    def _prepare(self) -> None:
        model = self._model
        model.refuse_hooks("relp")
        self._blocks, has_mlp = model.bridge.blocks, model.spec.has_mlp
        layers = list(enumerate(self._blocks))
        self._attn_norms = [_norm(model, attn_norm(block), f"the norm before attention {n}") for n, block in layers]
        self._attn_posts = [_post(model, block, "ln1_post", f"the norm behind attention {n}") for n, block in layers]
        self._mlp_posts = [_post(model, block, "ln2_post", f"the norm behind MLP {n}") for n, block in layers]
        norms = [mlp_norm(block, model.spec) for block in self._blocks] if has_mlp else []
        self._mlp_norms = [_norm(model, norm, f"the norm before MLP {n}") for n, norm in enumerate(norms)]
        self._inner = [_inner_norms(model, block.attn, n) for n, block in layers]
        self._final = _norm(model, model.bridge.ln_final, "the final norm")
        self._verify()

    def __getattr__(self, name: str) -> Any:
        """Whatever no rule changes."""
        return getattr(self._model, name)

    def read_attention(
        self, layer: int, slots: Sequence[Slot], stream: Float[Tensor, "token d_model"]
    ) -> tuple[Float[Tensor, "token _ d_head"], ...]:
        """Queries, keys or values of all heads of a layer; see `Model`."""
        with torch.no_grad():
            values = self._model.read_attention(layer, slots, stream)
        if not torch.is_grad_enabled():
            return values
        graphs = self._read(layer, slots, stream)
        return tuple(_valued(graph, value) for graph, value in zip(graphs, values, strict=True))

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "row query head d_head"],
        k: Float[Tensor, "row seq _ d_head"],
        v: Float[Tensor, "row seq _ d_head"],
        arguments: BlockArguments,
    ) -> Float[Tensor, "row query head d_head"]:
        """Every head's z from its queries, keys and values; see `Model`."""
        if self._attention_rule:
            q, k = q.detach(), k.detach()
        with ExitStack() as stack:
            for module, rule in self._inner[layer] if torch.is_grad_enabled() else ():
                own = module.forward

                def ruled(
                    value: Tensor, *args: Any, own: Any = own, rule: _Norm | _NoNorm = rule, **kwargs: Any
                ) -> Tensor:
                    with torch.no_grad():
                        kept = own(value, *args, **kwargs)
                    return _valued(rule(value), kept)

                stack.enter_context(forward_replaced(module, ruled))
            return self._model.attend(layer, q, k, v, arguments)

    def attn_output(self, layer: int, z: Float[Tensor, "*row head d_head"]) -> Float[Tensor, "*row d_model"]:
        """What an attention layer adds to the stream; see `Model`."""
        post = self._attn_posts[layer]
        if post is None or not torch.is_grad_enabled():
            return self._model.attn_output(layer, z)
        with torch.no_grad():
            value = self._model.attn_output(layer, z)
        out = post(_product(z.flatten(-2), self._blocks[layer].attn.o))
        return _valued(times(out, self._model.family.residual_multiplier), value)

    def mlp_output(self, layer: int, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """What an MLP adds to the stream; see `Model`."""
        with torch.no_grad():
            value = self._model.mlp_output(layer, stream)
        if not torch.is_grad_enabled():
            return value
        return _valued(self._mlp(layer, stream), value)

    def logits(
        self, stream: Float[Tensor, "row d_model"], tokens: Int[Tensor, " word"] | None = None
    ) -> Float[Tensor, "row word"]:
        """Next-token logits from the final stream; see `Model`."""
        with torch.no_grad():
            value = self._model.logits(stream, tokens)
        if not torch.is_grad_enabled():
            return value
        return _valued(self._words(stream, tokens), value)

    @torch.no_grad()
    def pull_back(
        self,
        layer: int,
        stream: Float[Tensor, "batch seq d_model"],
        gradients: Mapping[Slot, Float[Tensor, "batch seq head d_head"]],
        room: Float[Tensor, "_ batch seq d_model"] | None = None,
    ) -> Float[Tensor, "chosen batch seq d_model"]:
        """Relevance at heads' inputs from that at their q, k or v; see `Model`."""
        block, spec = self._blocks[layer], self._model.spec
        parts = [
            einsum(
                gradient,
                projection(block, slot, spec)[0],
                "batch seq head d_head, head d_model d_head -> head batch seq d_model",
            )
            for slot, gradient in gradients.items()
        ]
        return self._attn_norms[layer].pull_back(stream, torch.cat(parts))

    def _read(self, layer: int, slots: Sequence[Slot], stream: Tensor) -> list[Tensor]:
        normed, d_head = self._attn_norms[layer](stream), self._model.spec.d_head
        parts = (getattr(self._blocks[layer].attn, slot.value) for slot in slots)
        return [_product(normed, part).unflatten(1, (-1, d_head)) for part in parts]

    def _mlp(self, layer: int, stream: Tensor) -> Tensor:
        mlp, normed, post = self._blocks[layer].mlp, self._mlp_norms[layer](stream), self._mlp_posts[layer]
        hidden = self._model.mlp_hidden(layer, stream.detach())
        before = [_product(normed, part) for part in _into(mlp)]
        # Of a product each factor gets half: the ratio to a factor is what the others made of it.
        shared = [factor * _ratio(hidden, factor) / len(before) for factor in before]
        out = _product(sum(shared[1:], shared[0]), mlp_down(self._blocks[layer]))
        return times(out if post is None else post(out), self._model.family.residual_multiplier)

    def _words(self, stream: Tensor, tokens: Tensor | None) -> Tensor:
        weight, bias = linear(self._model.bridge.unembed)
        chosen = slice(None) if tokens is None else tokens
        logits = self._final(stream) @ weight[:, chosen].detach()
        logits = logits if bias is None else logits + bias[chosen].detach()
        logits = times(logits, self._model.family.logit_multiplier)
        cap = getattr(self._model.bridge.cfg, "output_logits_soft_cap", None)
        return cap * torch.tanh(logits / cap) if cap is not None and cap > 0 else logits

    @torch.no_grad()
    def _verify(self) -> None:
        """Measure every graph against the values that it stands behind, on random streams."""
        model, spec = self._model, self._model.spec
        generator = torch.Generator().manual_seed(0)
        stream = torch.randn(PROBE_TOKENS, spec.d_model, generator=generator, dtype=torch.float32).to(
            model.device, model.dtype
        )
        for layer in range(spec.n_layers):
            for slot, graph in zip(Slot, self._read(layer, tuple(Slot), stream), strict=True):
                (value,) = model.read_attention(layer, (slot,), stream)
                _compare(model, f"the heads' {slot.value} of layer {layer}", graph, value)
            if spec.has_mlp:
                _check_neurons(model, self._blocks[layer].mlp, layer, stream)
                _compare(model, f"MLP {layer}", self._mlp(layer, stream), model.mlp_output(layer, stream))
        _compare(model, "the unembedding", self._words(stream, None), model.logits(stream))


class _Valued(torch.autograd.Function):
    """One tensor's bits with another one's graph."""

    @staticmethod
    def forward(_ctx: Any, graph: Tensor, value: Tensor) -> Tensor:
        assert graph.shape == value.shape
        return value.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: Any) -> tuple[Any, None]:
        return gradients[0], None


def _valued(graph: Tensor, value: Tensor) -> Tensor:
    return _Valued.apply(graph, value)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    """A norm with its scale held fixed; weights are looked up at every call."""

    module: Any
    centred: bool
    offset: float
    eps: float

    def __call__(self, stream: Tensor) -> Tensor:
        centre = stream - stream.mean(-1, keepdim=True) if self.centred else stream
        out = centre * self._factor(stream)
        bias = getattr(self.module, "bias", None)
        return out if bias is None else out + bias.detach()

    def pull_back(self, stream: Tensor, behind: Tensor) -> Tensor:
        """Relevance at the stream from relevance behind the norm."""
        behind = behind * self._factor(stream)
        return behind - behind.mean(-1, keepdim=True) if self.centred else behind

    @torch.no_grad()
    def _factor(self, stream: Tensor) -> Tensor:
        centre = stream - stream.mean(-1, keepdim=True) if self.centred else stream
        weight = getattr(self.module, "weight", None)
        inverse = (centre.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return inverse if weight is None else inverse * (weight + self.offset)


@dataclass(frozen=True, slots=True, eq=False)
class _NoNorm:
    """Nothing between the stream and its reader."""

    def __call__(self, stream: Tensor) -> Tensor:
        return stream

    def pull_back(self, _stream: Tensor, behind: Tensor) -> Tensor:
        return behind


def _norm(model: BridgeModel, module: Any, what: str, width: int | None = None) -> _Norm | _NoNorm:
    """The norm by its parts, the form that gives its own values on a probe."""
    if not isinstance(module, torch.nn.Module):
        return _NoNorm()
    inner = getattr(module, "original_component", None) or module
    width = model.spec.d_model if width is None else width
    probe = torch.linspace(-4.0, 4.0, 6 * width).sin().view(1, 6, width).to(model.device, model.dtype)
    sizes = (getattr(source, name, None) for source in (inner, module.config) for name in ("eps", "variance_epsilon"))
    eps = next((value for value in sizes if isinstance(value, float)), 0.0)
    with torch.no_grad():
        value, best = module(probe), torch.inf
        if torch.equal(value, probe):
            return _NoNorm()
        for centred in (True, False):
            for offset in (0.0, 1.0):
                form = _Norm(inner, centred, offset, eps)
                best = min(best, apart := _apart(form(probe), value))
                if apart <= _allowed(model):
                    return form
    raise _unknown_form(model, what, f"no layer norm and no RMS norm gives its values (best: {best:.2g} apart)")


def _post(model: BridgeModel, block: Any, name: str, what: str) -> _Norm | _NoNorm | None:
    return _norm(model, getattr(block, name), what) if hasattr(block, name) else None


def _inner_norms(model: BridgeModel, attn: Any, layer: int) -> list[tuple[Any, _Norm | _NoNorm]]:
    """Norms on queries and keys, inside the attention code."""
    found = []
    for name in ("q_norm", "k_norm"):
        if isinstance(module := getattr(attn, name, None), torch.nn.Module):
            width = int(next(module.parameters()).numel())
            found.append((module, _norm(model, module, f"the {name} of layer {layer}", width)))
    return found


def _into(mlp: Any) -> list[Any]:
    """The projections into an MLP's neurons: one, or the two factors of a gate."""
    return [getattr(mlp, name) for name in ("gate", "in") if hasattr(mlp, name)]


def _product(values: Tensor, module: Any) -> Tensor:
    weight, bias = linear(module)
    out = values @ weight.detach()
    return out if bias is None else out + bias.detach()


def _ratio(hidden: Tensor, factor: Tensor) -> Tensor:
    """What a factor is multiplied with to give the neuron, held fixed."""
    factor = factor.detach()
    small = factor.abs() < SMALLEST
    return torch.where(small, 0.0, hidden / torch.where(small, 1.0, factor))


def _check_neurons(model: BridgeModel, mlp: Any, layer: int, stream: Tensor) -> None:
    """Refuse activations that mix neurons: moving what goes into the first must move it and no other."""
    still = model.mlp_hidden(layer, stream)
    for module in _into(mlp):

        def bump(before: Tensor) -> Tensor:
            return torch.cat([before[..., :1] + 1.0, before[..., 1:]], -1)

        with hooks() as add:
            add.output(module, bump)
            moved = (model.mlp_hidden(layer, stream) - still).abs() / still.abs().max()
        if float(moved[..., 0].max()) == 0 or float(moved[..., 1:].max()) > _allowed(model):
            raise _unknown_form(
                model,
                f"MLP {layer}",
                "its activation is not of each neuron alone (moving what goes into the first moves it by "
                f"{float(moved[..., 0].max()):.2g} and another by {float(moved[..., 1:].max()):.2g} of the largest)",
            )


def _compare(model: BridgeModel, what: str, graph: Tensor, value: Tensor) -> None:
    if not (apart := _apart(graph, value)) <= _allowed(model):
        raise _unknown_form(model, what, f"its parts give values {apart:.2g} of the largest away from its own")


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


def _allowed(model: BridgeModel) -> float:
    return TOLERANCE.get(model.dtype, TOLERANCE[torch.float32])


def _unknown_form(model: BridgeModel, what: str, measured: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"relp has no rule for {what} of model {model.id!r}: {measured}. Take eap or eap-ig, which need none."
    )
