"""Every part of a model, run by itself, beside what the model's own forward pass did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor

from circuitlab.models import steps
from circuitlab.models.anatomy import linear, mlp_in, mlp_up, norm_inside
from circuitlab.models.recording import BlockArguments, Recording
from circuitlab.models.traced import Window, pass_gradients, pull_back, trace
from circuitlab.parts import Slot, Stage

# Largest difference relative to the largest value. On 25 architectures with random weights it is below 1e-15 in
# float64, or 2e-7 where a model norms in float32; 0.01 in bfloat16, 0.0013 in float16. The bound allows for
# trained models, whose largest values are outliers; a wrong part differs by 1e-2 or more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.bfloat16: 0.06, torch.float16: 0.02}
NOT_CAUSAL = "the stream at earlier tokens when the last one changes"

Difference = tuple[str, Tensor, Tensor]


def allowed(model: Any) -> float:
    """The largest relative difference that a model's dtype explains.

    Returns:
        A share of the largest value.
    """
    return TOLERANCE.get(model.dtype, TOLERANCE[torch.float32])


@torch.no_grad()
def differences(model: Any, tokens: Tensor) -> Iterator[Difference]:
    """Every part beside what the whole model did; first what was recorded only, so that a number comes before a crash.

    Raises:
        UnsupportedModelError: A part of the model was not seen while it ran.
    """
    run = model.record(tokens)
    yield from _of_the_stream(model, run)
    whole = model.whole_logits(tokens)[:, -1]
    yield from _of_the_ends(model, tokens, run, whole, model.bridge.cfg.d_vocab)
    arguments = model.block_arguments(tokens)
    yield from _of_suffixes(model, run, arguments)
    yield from _of_the_parts(model, run, arguments, _of_the_mlp, model.whole_block)


@torch.no_grad()
def declared_differences(model: Any, tokens: Tensor) -> Iterator[Difference]:
    """The same for any model of the protocol: every step that it declares beside what `record` kept of a whole run.

    Args:
        model: The model.
        tokens: Prompts.
    """
    run = model.record(tokens)
    yield from _of_the_stream(model, run)
    final = run.resid_final[:, -1]
    whole = model.logits(final)
    yield from _of_the_ends(model, tokens, run, whole, model.spec.d_vocab)
    weight, bias = model.unembedding()
    read, cap = model.final_norm(final) @ weight + bias, model.logit_cap
    yield "the unembedding of the normed stream", read if cap is None else cap * (read / cap).tanh(), whole

    def block(layer: int, stream: Tensor, arguments: BlockArguments) -> Tensor:
        return model.run_blocks(stream, layer, arguments, layer + 1)

    arguments = model.block_arguments(tokens)
    yield from _of_the_parts(model, run, arguments, _of_the_declared_mlp, block)
    yield from _of_suffixes(model, run, arguments)


def _of_the_stream(model: Any, run: Recording) -> Iterator[Difference]:
    for layer in range(model.spec.n_layers):
        added = run.resid_pre[layer] + run.attn_out[layer] + run.mlp_out[layer]
        yield "the stream (attention + MLP)", added, run.stream(layer + 1)


def _of_suffixes(model: Any, run: Recording, arguments: BlockArguments) -> Iterator[Difference]:
    # Every block is run by itself as well; a suffix from each of 12 layers would be half of the time that all takes.
    for first in sorted({0, model.spec.n_layers // 2}):
        yield "a suffix of the blocks", model.run_blocks(run.resid_pre[first], first, arguments), run.resid_final


def _of_the_parts(
    model: Any,
    run: Recording,
    arguments: BlockArguments,
    of_the_mlp: Callable[[Any, Recording, int], Iterator[Difference]],
    block: Callable[[int, Tensor, BlockArguments], Tensor],
) -> Iterator[Difference]:
    for layer in range(model.spec.n_layers):
        yield from _of_attention(model, run, arguments, layer)
        if model.spec.has_mlp:
            yield from of_the_mlp(model, run, layer)
        yield from _of_the_block(model, run, arguments, layer, block)
    yield _of_all_gradients(model, run, arguments)


def _of_the_ends(model: Any, tokens: Tensor, run: Recording, whole: Tensor, d_vocab: int) -> Iterator[Difference]:
    yield "the embedding", model.embedding(tokens), run.resid_pre[0]
    if model.spec.causal and tokens.shape[1] > 1:
        later = tokens.clone()
        later[:, -1] = (later[:, -1] + 1) % d_vocab
        changed = model.record(later).resid_final
        yield NOT_CAUSAL, changed[:, :-1], run.resid_final[:, :-1]
    yield "the vector of logits", model.logits(run.resid_final[:, -1]), whole
    some = tokens[0] % whole.shape[-1]
    # Beside all the others: words that the probe happens to pick may have logits of 0, which rounding is large against.
    yield "a choice of logits", whole.index_copy(1, some, model.logits(run.resid_final[:, -1], some)), whole


def _of_attention(model: Any, run: Recording, arguments: BlockArguments, layer: int) -> Iterator[Difference]:
    n_heads, before, attn = model.spec.n_heads, run.resid_pre[layer], run.attn_out[layer]
    recorded = run.head_inputs(layer)
    copies = before[None].expand(n_heads, -1, -1, -1)
    for slot, value in recorded.items():
        projected = rearrange(
            steps.project(model, layer, slot, range(n_heads), copies), "head batch seq d_head -> batch seq head d_head"
        )
        yield f"the {slot.value} projection", projected, value
    for slot, read in steps.head_inputs(model, layer, before).items():
        yield f"the {slot.value} of all heads", read, recorded[slot]
    yield from _of_other_heads(model, run, arguments, layer)
    yield "attention", steps.attend(model, layer, recorded, arguments), run.z[layer]
    if model.score_scale(layer) is not None:
        read = model.attn_input(layer, before)
        sees = torch.ones(before.shape[:2], dtype=torch.bool, device=before.device)
        q, k, v = recorded.values()
        at_last = steps.attend_last_query(model, layer, q[:, -1], read, sees)
        yield "attention at the last token", at_last, run.z[layer][:, -1]
        earlier = torch.ones(before.shape[1], before.shape[1], dtype=torch.bool, device=before.device).tril()
        scores = einsum(q, k, "batch query head d_head, batch key head d_head -> batch head query key")
        pattern = steps.attention_pattern(model, layer, scores, earlier)
        yield "the attention pattern", steps.weigh_values(pattern, v), run.z[layer]
    yield "the attention output", model.attn_output(layer, run.z[layer]), attn
    yield "the sum of the heads", _sum_of_heads(model, layer, run.z[layer]), attn


def _of_other_heads(model: Any, run: Recording, arguments: BlockArguments, layer: int) -> Iterator[Difference]:
    """The z of all heads but the first (or the first group) when its query, key and value are something else."""
    group = len(steps.query_heads(model.spec, 0))
    q, k, v = run.q[layer], *(steps.once_per_kv_head(model.spec, values[layer]) for values in (run.k, run.v))
    changed = [(group, (q, k, _first_changed(v)))]
    if not model.heads_share_a_norm(layer):
        changed += [(1, (_first_changed(q), k, v)), (group, (q, _first_changed(k), v))]
    for rest, values in changed:
        if rest < model.spec.n_heads:
            z = model.attend(layer, *values, arguments)
            yield "the other heads' z when one head changes", z[:, :, rest:], run.z[layer][:, :, rest:]


def _of_the_mlp(model: Any, run: Recording, layer: int) -> Iterator[Difference]:
    read = steps.mlp_input(model, run, layer)
    mlp, neurons = run.mlp_out[layer], model.mlp_hidden(layer, read)
    yield "an MLP", model.mlp_output(layer, read), mlp
    yield "an MLP from its neurons", model.mlp_from_hidden(layer, neurons), mlp
    block = model.bridge.blocks[layer]
    if norm_inside(block) is not None:
        inside = model.mlp_hidden(layer, read, Stage.MID)
        yield "an MLP from its neurons before their norm", model.mlp_from_hidden(layer, inside, Stage.MID), mlp
    if mlp_up(block) is not None and len(mlp_in(block)) == 1:
        before = model.mlp_hidden(layer, read, Stage.PRE)
        yield "an MLP from its pre-activations", model.mlp_from_hidden(layer, before, Stage.PRE), mlp
    if not model.has_post_norm(layer):
        bias = linear(model.bridge.blocks[layer].mlp.out)[1]
        added = neurons @ model.neuron_weight(layer)
        factor = model.family.residual_multiplier
        yield "the sum of the neurons", added if bias is None else added + factor * bias, mlp


def _of_the_declared_mlp(model: Any, run: Recording, layer: int) -> Iterator[Difference]:
    read, mlp = steps.mlp_input(model, run, layer), run.mlp_out[layer]
    neurons = model.mlp_hidden(layer, read)
    yield "an MLP", model.mlp_output(layer, read), mlp
    yield "an MLP from its neurons", model.mlp_from_hidden(layer, neurons), mlp
    if not model.has_post_norm(layer):
        bias = model.mlp_from_hidden(layer, torch.zeros_like(neurons))
        yield "the sum of the neurons", neurons @ model.neuron_weight(layer) + bias, mlp


def _of_the_block(
    model: Any,
    run: Recording,
    arguments: BlockArguments,
    layer: int,
    block: Callable[[int, Tensor, BlockArguments], Tensor],
) -> Iterator[Difference]:
    """The block by itself, and the gradient through its steps beside that through the block."""
    before = run.resid_pre[layer]
    # Any gradient after the block serves; this one differs in every component.
    at_end = torch.ones_like(before).cumsum(-1) / before.shape[-1]
    with torch.enable_grad():
        start = before.detach().clone().requires_grad_()
        middle, read = steps.half_block(model, layer, start, arguments)
        after = steps.add_mlp(model, layer, middle, read)
        whole = block(layer, start, arguments)
    yield "a block", whole, run.stream(layer + 1)
    (ours,), (theirs,) = (torch.autograd.grad(end, start, at_end) for end in (after, whole))
    yield "the gradient of a block", ours, theirs


def _of_all_gradients(model: Any, run: Recording, arguments: BlockArguments) -> Difference:
    """The gradient at the embedding: the one at the end, and what every reader pulls back.

    The readers are all that reads the stream, so this is the chain rule; the other side is torch's own backward pass.
    """
    n_rows, n_tokens = run.resid_final.shape[:2]
    window = Window(first=0, stop=n_tokens, answer_at=torch.full((n_rows,), n_tokens - 1, device=model.device))
    traced = trace(model, arguments, window, run.resid_pre[0])
    at_end = torch.ones_like(traced.final).cumsum(-1) / traced.final.shape[-1]
    with torch.enable_grad():
        total = (traced.final * at_end).sum()
    gradients = pass_gradients(total, traced)
    found = torch.zeros_like(traced.start)
    found[:, -1] = at_end
    for layer, (block, stream) in enumerate(zip(gradients.blocks, traced.streams, strict=True)):
        last = layer == model.spec.n_layers - 1
        querying = window.at_answer(stream) if last else stream
        found[:, -querying.shape[1] :] += pull_back(model, layer, querying, {Slot.Q: block.q}).sum(0)
        found += pull_back(model, layer, stream, {Slot.K: block.k, Slot.V: block.v}).sum(0)
        if block.mlp_read is not None:
            found[:, -querying.shape[1] :] += block.mlp_read
    return "the gradient through all readers", found, gradients.start


def _first_changed(heads: Tensor) -> Tensor:
    changed = heads.clone()
    changed[:, :, 0] = 3 * changed[:, :, 0] + 1
    return changed


def _sum_of_heads(model: Any, layer: int, z: Tensor) -> Tensor:
    """Heads one by one, and what the layer adds when every z is zero (its bias, which a post-norm drops)."""
    total = model.head_outputs(layer, z).sum(0)
    return total if model.has_post_norm(layer) else total + model.attn_output(layer, torch.zeros_like(z))


@torch.no_grad()
def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference as a share of the largest value.

    Returns:
        The share; 0 where both agree.
    """
    scale = theirs.abs().max().clamp_min(1e-12)
    return float((ours - theirs).abs().max() / scale)
