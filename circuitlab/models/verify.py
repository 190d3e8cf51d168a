"""Refuse a model by measuring it: do its parts, run one by one, add up to the whole?

A model that passes can be patched at every reader and writer; one that does not is refused before any work, with the
part that differs and the number.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitlab.errors import UnsupportedModelError
from circuitlab.models.bridge import BridgeModel
from circuitlab.parts import Slot

PROBE_TOKENS = 6
FLAGS = "If the bridge has use_split_qkv_input, use_attn_in or use_attn_result set, unset them."
# Largest difference relative to the largest value. On eleven architectures with random weights it is at most 4e-7, in
# float64 too where a model norms or rotates in float32. The bound leaves room for trained models, whose largest values
# are outliers; a wrong part differs by 1e-2 or more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.bfloat16: 0.06, torch.float16: 0.02}


def verify(model: BridgeModel) -> None:
    """Run every part of the model on one random prompt and compare with the whole.

    Raises:
        UnsupportedModelError: A part differs by more than the dtype's tolerance, or cannot be run by itself.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (2, min(PROBE_TOKENS, model.spec.n_ctx))
    tokens = torch.randint(0, model.spec.d_vocab, shape, generator=generator).to(model.device)
    try:
        differences = measure(model, tokens)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error} {FLAGS}") from error
    except (RuntimeError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise UnsupportedModelError(
            f"model {model.id!r} cannot be taken apart: {type(error).__name__}: {str(error).partition(chr(10))[0]}. "
            f"Its architecture is not one that circuitlab can patch exactly. {FLAGS}"
        ) from error
    allowed = TOLERANCE.get(model.dtype, TOLERANCE[torch.float32])
    for part, value in differences.items():
        if not value <= allowed:
            raise UnsupportedModelError(
                f"model {model.id!r}: {part} differs by {value:.2g} of its size from the model's own forward pass "
                f"(at most {allowed:.0e} in {model.dtype}). Patching it would give wrong numbers. {FLAGS}"
            )


@torch.no_grad()
def measure(model: BridgeModel, tokens: Tensor) -> dict[str, float]:
    """Largest relative difference of each part to the whole model, over all layers."""
    frame, run, spec = model.frame(tokens), model.record(tokens), model.spec
    worst: dict[str, float] = {}

    def compare(part: str, ours: Tensor, theirs: Tensor) -> None:
        worst[part] = max(worst.get(part, 0.0), _relative(ours, theirs))

    for layer in range(spec.n_layers):
        before, attn, mlp = run.resid_pre[layer], run.attn_out[layer], run.mlp_out[layer]
        compare("the stream (attention + MLP)", before + attn + mlp, run.stream(layer + 1))
        compare("a suffix of the blocks", model.run_blocks(before, layer, frame), run.resid_final)
        copies = before[None].expand(spec.n_heads, -1, -1, -1)
        for slot, own in ((Slot.Q, run.q), (Slot.K, run.k), (Slot.V, run.v)):
            projected = model.project(layer, slot, range(spec.n_heads), copies).permute(1, 2, 0, 3)
            compare(f"the {slot.value} projection", projected, own[layer])
        for slot, own, read in zip(Slot, (run.q, run.k, run.v), _all_read(model, layer, before), strict=True):
            compare(f"the {slot.value} of all heads", read, own[layer])
        compare("attention", model.attend(layer, run.q[layer], run.k[layer], run.v[layer], frame), run.z[layer])
        compare("the attention output", model.attn_output(layer, run.z[layer]), attn)
        compare("the sum of the heads", _sum_of_heads(model, layer, run.z[layer]), attn)
        if spec.has_mlp:
            read = before if spec.parallel else before + attn
            compare("an MLP", model.mlp_output(layer, read), mlp)
            compare("an MLP from its neurons", model.mlp_from_hidden(layer, model.mlp_hidden(layer, read)), mlp)
    whole = model.whole_logits(tokens)[:, -1]
    compare("the logits", model.logits(run.resid_final[:, -1]), whole)
    some = tokens[0]
    compare("the logits of some tokens", model.logits(run.resid_final[:, -1], some), whole[:, some])
    return worst


def _all_read(model: BridgeModel, layer: int, stream: Tensor) -> tuple[Tensor, ...]:
    """All heads' q, k and v read at once, keys and values repeated as in a recording."""
    read = model.read_attention(layer, tuple(Slot), stream.flatten(0, 1))
    split = (one.unflatten(0, stream.shape[:2]) for one in read)
    return tuple(one.repeat_interleave(model.spec.n_heads // one.shape[2], 2) for one in split)


def _sum_of_heads(model: BridgeModel, layer: int, z: Tensor) -> Float[Tensor, "batch seq d_model"]:
    """Heads one by one, and what the layer adds when every z is zero (its bias, which a post-norm drops)."""
    total = model.head_outputs(layer, z).sum(0)
    return total if model.has_post_norm(layer) else total + model.attn_output(layer, torch.zeros_like(z))


def _relative(ours: Tensor, theirs: Tensor) -> float:
    scale = theirs.abs().max().clamp_min(1e-12)
    return float((ours - theirs).abs().max() / scale)
