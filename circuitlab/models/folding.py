"""Rewrite a freshly booted model's weights so that its norms are plain and its stream has mean zero.

The predictions stay the same; what single parts do to the stream changes, and with it every number of a part. These are
the coordinates that TransformerLens's HookedTransformer loaded models in by default.

**Folding layer norms.** A norm y = g x^ + b before a projection y W + c becomes y = x^ before x^ (g W) + (c + b W).
Where the norm is a layer norm, x^ has mean zero and the mean of W over what it reads does nothing: it is taken out.
Attention weights sum to 1, so that the values' bias adds the same to a layer's output whatever is attended to: it moves
to the bias of the output projection. A norm inside an MLP (SoLU) is folded into the MLP's output projection. Norms
after attention or MLP (Gemma 2) have no projection after them and stay.

**Centring.** A layer norm takes out the mean of what it reads, so that what embeddings, heads and MLPs write may have
mean zero; so may each row of the unembedding over the vocabulary, since the same number added to all logits changes no
probability and no difference of logits.

What was done is measured at the end: log-probabilities before and after, and the mean of the stream.

References:
    TransformerLens, "further comments" on `fold_ln` and `center_writing_weights`,
    https://transformerlensorg.github.io/TransformerLens/content/getting_started.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from circuitlab.errors import ConfigError, UnsupportedModelError
from circuitlab.models.anatomy import linear, mlp_in, norm_inside
from circuitlab.models.norms import NormForm, closest_form
from circuitlab.models.recording import Folding
from circuitlab.models.surgery import evaluating, hooks
from circuitlab.parts import ModelSpec, Slot

PROBE_TOKENS = 6
# Between a norm and its form. Norms that are something else differ by their gain or their mean, 0.01 or more; some norm
# in float32 whatever they are given.
SAME = 1e-4
# Rounding, as a share of the largest log-probability and of the stream: what was wrong would show as 1e-2 or more.
ALLOWED = {torch.float64: 1e-6, torch.float32: 2e-4}


@torch.no_grad()
def fold_weights(bridge: Any, spec: ModelSpec, folding: Folding) -> None:
    """Rewrite the weights in place.

    Args:
        bridge: A model with no other user.
        spec: Its shape.
        folding: What to do.

    Raises:
        ConfigError: The weights are in half precision, which rewritten weights would be rounded to.
        UnsupportedModelError: The model's norms do not allow it, or its predictions or stream came out otherwise.
    """
    dtype = next(bridge.original_model.parameters()).dtype
    if dtype not in ALLOWED:
        raise ConfigError(
            f"fold_ln and center_weights would round weights that are rewritten to {dtype} and change the model. "
            "Use float32 or float64."
        )
    if folding.center_weights:
        _check_centring(bridge, spec)
    probe = probe_tokens(bridge, spec)
    expected, _ = _ran(bridge, probe)
    _untie(bridge)
    if folding.fold_ln:
        _fold_norms(bridge, spec)
    if folding.center_weights:
        _center(bridge, spec)
    found, streams = _ran(bridge, probe)
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= ALLOWED[dtype]:
        raise UnsupportedModelError(
            f"model {spec.name!r}: its log-probabilities differ by {difference:.2g} of their size when its weights are "
            "folded or centred. Load it without fold_ln and center_weights."
        )
    if folding.center_weights:
        means = max(float(stream.mean(-1).abs().max() / stream.std()) for stream in streams)
        if not means <= ALLOWED[dtype]:
            raise UnsupportedModelError(
                f"model {spec.name!r}: something else than embeddings, heads and MLPs writes to the stream, whose mean "
                f"is {means:.2g} of its spread after centring. Load it without center_weights."
            )


def _reading_norms(bridge: Any, spec: ModelSpec) -> Iterator[tuple[str, Any, list[Any]]]:
    """Norms that read the stream, by name, and the projections that read them."""
    for layer, block in enumerate(bridge.blocks):
        attn_reads = [getattr(block.attn, slot.value) for slot in Slot]
        mlp_reads = mlp_in(block) if spec.has_mlp else []
        ln1, ln2 = getattr(block, "ln1", None), getattr(block, "ln2", None)
        # Parallel blocks with a single norm (GPT-J, Phi) give its output to attention and MLP alike.
        shared = spec.parallel and ln2 is None
        yield f"ln1 of block {layer}", ln1, attn_reads + (mlp_reads if shared else [])
        if spec.has_mlp and not shared:
            yield f"ln2 of block {layer}", ln2, mlp_reads
    yield "the final norm", bridge.ln_final, [bridge.unembed]


def _fold_norms(bridge: Any, spec: ModelSpec) -> None:
    for where, norm, readers in _reading_norms(bridge, spec):
        _fold(norm, readers, where, spec)
    for layer, block in enumerate(bridge.blocks):
        if spec.has_mlp:
            _fold(norm_inside(block), [block.mlp.out], f"the norm inside MLP {layer}", spec)
        _move_value_bias(block, spec)


def _fold(norm: Any, readers: list[Any], where: str, spec: ModelSpec) -> None:
    """A norm's gain and bias into the projections that read it."""
    kind = _kind(norm, where, spec)
    gain, bias = kind.gain, kind.bias
    for reader in readers:
        weight, reader_bias = linear(reader)
        exact = _exact(weight)
        if bias is not None:
            _set_bias(reader, _exact(bias) @ exact + (0.0 if reader_bias is None else _exact(reader_bias)))
        exact = exact if gain is None else _exact(gain)[:, None] * exact
        # Of mean zero over what it reads: the output of a layer norm has no mean to act on.
        weight.copy_(exact - exact.mean(0) if kind.centred else exact)
    kind.make_plain()


def _move_value_bias(block: Any, spec: ModelSpec) -> None:
    """The bias of the values to that of the output projection: attention weights sum to 1."""
    bias = linear(block.attn.v)[1]
    if bias is None:
        return
    weight, out_bias = linear(block.attn.o)
    by_head = _exact(bias).unflatten(0, (-1, spec.d_head))
    each = by_head.repeat_interleave(spec.n_heads // len(by_head), 0).flatten()
    _set_bias(block.attn.o, each @ _exact(weight) + (0.0 if out_bias is None else _exact(out_bias)))
    bias.zero_()


def _center(bridge: Any, spec: ModelSpec) -> None:
    tables = (bridge.embed, getattr(bridge, "pos_embed", None))
    writers = [block.attn.o for block in bridge.blocks] + [block.mlp.out for block in bridge.blocks if spec.has_mlp]
    written = [table.original_component.weight for table in tables if table is not None]
    for weight in (*written, *(each for writer in (*writers, bridge.unembed) for each in linear(writer))):
        if weight is not None:
            _take_out_mean(weight)


def _take_out_mean(weight: Tensor) -> None:
    exact = _exact(weight)
    weight.copy_(exact - exact.mean(-1, keepdim=True))


def _check_centring(bridge: Any, spec: ModelSpec) -> None:
    """Refuse models whose readers would see that the mean is gone.

    Raises:
        UnsupportedModelError: A norm that reads the stream is no layer norm, norms come after what is written, or
            logits are capped.
    """

    def refuse(why: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"model {spec.name!r} cannot be centred: {why}. Load it without center_weights.")

    if any(hasattr(block, "ln1_post") or hasattr(block, "ln2_post") for block in bridge.blocks):
        raise refuse("its attention and MLPs are followed by norms, so that no weights write to the stream")
    for where, norm, _ in _reading_norms(bridge, spec):
        kind = _kind(norm, where, spec)
        if not kind.centred:
            raise refuse(f"{where} is {kind.name} and does not take out the mean that centring takes out")
    if (getattr(bridge.cfg, "output_logits_soft_cap", None) or 0) > 0:
        raise refuse("its logits are capped, so that a number added to all of them would change their differences")


def _kind(norm: Any, where: str, spec: ModelSpec) -> NormForm:
    like = next(iter(norm.parameters()), torch.zeros(())) if norm is not None else torch.zeros(())
    form, difference = closest_form(norm, like, spec.d_model)
    if difference > SAME:
        raise UnsupportedModelError(
            f"model {spec.name!r}: {where} is neither a layer norm nor an RMS norm, so that it cannot be folded. "
            "Load it without fold_ln and center_weights."
        )
    return form


def _untie(bridge: Any) -> None:
    """Give the unembedding weights of its own where it shares the embedding's."""
    embedding, head = bridge.embed.original_component, bridge.unembed.original_component
    if head.weight.data_ptr() != embedding.weight.data_ptr():
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    config = getattr(bridge.original_model, "config", None)
    if config is not None and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False  # this model's own; they are not tied again


def _set_bias(projection: Any, value: Tensor) -> None:
    """Give a projection this bias; it may have had none."""
    layer = projection.original_component
    if layer.bias is not None:
        layer.bias.copy_(value)
    elif bool(value.any()):
        layer.bias = nn.Parameter(value.to(layer.weight), requires_grad=False)


def _exact(weight: Tensor) -> Tensor:
    """In float64, so that rewriting rounds once; on the CPU, for not every device has it."""
    return weight.detach().to("cpu", torch.float64)


def probe_tokens(bridge: Any, spec: ModelSpec) -> Int[Tensor, "2 seq"]:
    """Two random prompts, always the same ones.

    Returns:
        Token ids, of 6 tokens a prompt or as many as the model reads.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, min(PROBE_TOKENS, spec.n_ctx or PROBE_TOKENS))
    tokens = torch.randint(0, bridge.cfg.d_vocab, shape, generator=generator)
    return tokens.to(next(bridge.original_model.parameters()).device)


def _ran(bridge: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities at every position, and the stream at both ends."""
    streams: list[Tensor] = []
    with evaluating(bridge.original_model.modules()), hooks() as add:
        add.input(bridge.blocks[0], streams.append)
        add.input(bridge.ln_final, streams.append)
        logits = bridge(tokens, return_type="logits", use_cache=False)
    return logits.double().log_softmax(-1), streams
