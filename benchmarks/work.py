"""How many operations the four standard sweeps of a GPT-2 need, after every saving that is known.

Counted are the matrix products of the blocks, two operations for each multiplication and addition. A block costs
24 d^2 a token: 6 for q, k and v, 2 for the heads' output, 16 for the MLP. What is saved:

1. Blocks before the patch are never run: they are as recorded.
2. Tokens before the patched one are as recorded (attention is causal), and those after the answer do not matter.
3. Cells before the first token that differs between the prompts change nothing. At the start of the model (resid_pre
   of layer 0) only the differing tokens themselves are patched.
4. In the last block keys and values (4 d^2) are needed at all these tokens, the rest (20 d^2) at the answer only.
5. An attention patch enters in the middle of its block: of that block only the MLP runs, at the answer only where it
   is the last one. An MLP patch enters after its block.
6. A logit difference needs two logits: they are not counted, and neither are the two recorded runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.models import Size

PER_BLOCK, KEYS_AND_VALUES, MLP = 24, 4, 16


def needed_operations(size: Size, differ_at: Sequence[int]) -> int:
    """Operations of resid_pre, attn_out and mlp_out by layer and position and head_z by head, all prompts."""
    last, first = size.n_layers - 1, min(differ_at)

    def tail(layer: int, n_tokens: int) -> int:
        """The blocks from this one on."""
        if layer > last:
            return 0
        in_the_last = KEYS_AND_VALUES * n_tokens + PER_BLOCK - KEYS_AND_VALUES
        return (last - layer) * PER_BLOCK * n_tokens + in_the_last

    def attention_patch(layer: int, n_tokens: int) -> int:
        return MLP * (n_tokens if layer < last else 1) + tail(layer + 1, n_tokens)

    total = 0
    for layer in range(size.n_layers):
        changed = differ_at if layer == 0 else range(first, size.n_tokens)
        total += sum(tail(layer, size.n_tokens - position) for position in changed)
        for position in range(first, size.n_tokens):
            later = size.n_tokens - position
            total += attention_patch(layer, later) + tail(layer + 1, later)
        total += size.n_heads * attention_patch(layer, size.n_tokens - first)
    return total * size.d_model**2 * size.n_prompts
