"""From a program to the weights of a transformer.

Every variable has directions of the residual stream for itself, orthonormal to all others'. Readers read through the
transposed directions of their variables, writers write along their own; an unused head or MLP is 0.

Without layer norm the directions are the axes. With it they are rows of a cosine transform, which sum to 0, so that
taking off the mean changes nothing; and the first attention layer's bias, which belongs to no writer, adds SIZE along
an unread direction, so that all else in the stream hardly changes its norm: by at most about |x|^2 / (2
SIZE^2), some 1e-4. The first layer reads the embedding alone, a token and a position, which always has the norm of two.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from circuitlab.compiled.program import POSITION, TOKEN, Apply, Attend, Match, Program
from circuitlab.models.native import NativeShape
from circuitlab.parts import Kind

# Of the constant that holds the norm of the stream, where the variables are of size 1.
SIZE = 300.0
# The layer norm's own, TransformerLens's default.
EPS = 1e-5

Weights = dict[str, np.ndarray]


def compile_weights(program: Program, norm: bool) -> tuple[NativeShape, Weights]:
    """Shape and weights of the model that runs a program.

    Args:
        program: The program.
        norm: With layer norms, made harmless; else without.

    Returns:
        The shape, and the weights by parameter name.
    """
    directions, constant = _directions(program, norm)
    heads = [operation for operation in program.operations if isinstance(operation, Attend)]
    d_model, d_head = len(constant), max(map(_width, heads), default=1)
    spec = program.spec(program.name, d_model, d_head)
    d_mlp = max((len(op.bias) for op in program.operations if isinstance(op, Apply)), default=0)
    shape = NativeShape(
        n_layers=spec.n_layers,
        n_heads=spec.n_heads,
        d_model=d_model,
        d_head=d_head,
        d_mlp=d_mlp,
        d_vocab=len(program.words),
        d_vocab_out=len(program.words),
        n_ctx=program.n_ctx,
        norm=norm,
        causal=program.causal,
    )
    weights = {
        "tok_embed.weight": directions[TOKEN],
        "pos.weight": directions[POSITION],
        "head.weight": program.unembed.T @ directions[program.output],
    }
    for layer in range(spec.n_layers):
        weights |= _empty_layer(layer, shape)
    for operation in program.operations:
        if isinstance(operation, Attend):
            _write_head(program, operation, directions, shape, weights)
        else:
            _write_mlp(program, operation, directions, weights)
    if norm:
        weights["layers.0.attn.o.bias"] += SIZE * constant
        weights |= _gains(shape)
    return shape, weights


def _directions(program: Program, norm: bool) -> tuple[dict[str, Float[np.ndarray, "value d_model"]], np.ndarray]:
    """Each variable's directions, and one more that is nobody's."""
    sizes = program.sizes
    total = sum(sizes.values())
    if norm:
        d_model = total + 2
        row, column = np.arange(1, d_model)[:, None], np.arange(d_model)
        basis = np.sqrt(2 / d_model) * np.cos(np.pi * row * (column + 0.5) / d_model)
    else:
        basis = np.eye(total + 1, total)  # nobody's direction is 0
    starts = np.cumsum([0, *sizes.values()])
    return {name: basis[at : at + size] for (name, size), at in zip(sizes.items(), starts, strict=False)}, basis[total]


def variable_directions(program: Program, norm: bool) -> dict[str, Float[np.ndarray, "value d_model"]]:
    """Each variable's directions in the residual stream; a value is the stream times them."""
    return _directions(program, norm)[0]


def _width(head: Attend) -> int:
    """How wide a head must be: every match takes a direction a key value, every preference one."""
    scored = sum(term.weight.shape[1] if isinstance(term, Match) else 1 for term in head.score)
    return max(scored, head.through.shape[1])


def _empty_layer(layer: int, shape: NativeShape) -> Weights:
    inner, d_model, at = shape.n_heads * shape.d_head, shape.d_model, f"layers.{layer}"
    found = {f"{at}.attn.o.weight": np.zeros((d_model, inner)), f"{at}.attn.o.bias": np.zeros(d_model)}
    for slot in "qkv":
        found |= {f"{at}.attn.{slot}.weight": np.zeros((inner, d_model)), f"{at}.attn.{slot}.bias": np.zeros(inner)}
    if shape.d_mlp:
        found |= {f"{at}.mlp.fc_in.weight": np.zeros((shape.d_mlp, d_model))}
        found |= {f"{at}.mlp.fc_out.weight": np.zeros((d_model, shape.d_mlp))}
        found |= {f"{at}.mlp.fc_in.bias": np.zeros(shape.d_mlp), f"{at}.mlp.fc_out.bias": np.zeros(d_model)}
    return found


def _write_head(
    program: Program, head: Attend, directions: dict[str, np.ndarray], shape: NativeShape, weights: Weights
) -> None:
    node = program.nodes[head.writes]
    assert node.kind is Kind.HEAD
    assert node.head is not None
    at, start = f"layers.{node.layer}.attn", node.head * shape.d_head
    row, scale = start, np.sqrt(shape.d_head)  # scores are divided by it
    for term in head.score:
        key = directions[term.key]
        if isinstance(term, Match):
            rows = slice(row, row + len(key))
            weights[f"{at}.q.weight"][rows] = scale * term.weight.T @ directions[term.query]
            weights[f"{at}.k.weight"][rows] = key
            row += len(key)
        else:
            weights[f"{at}.q.bias"][row] = scale
            weights[f"{at}.k.weight"][row] = term.weight @ key
            row += 1
    rows = slice(start, start + head.through.shape[1])
    weights[f"{at}.v.weight"][rows] = head.through.T @ directions[head.value]
    weights[f"{at}.o.weight"][:, rows] = directions[head.writes].T


def _write_mlp(program: Program, mlp: Apply, directions: dict[str, np.ndarray], weights: Weights) -> None:
    at, n = f"layers.{program.nodes[mlp.writes].layer}.mlp", len(mlp.bias)
    for variable, weight in mlp.reads.items():
        weights[f"{at}.fc_in.weight"][:n] += weight.T @ directions[variable]
    weights[f"{at}.fc_in.bias"][:n] = mlp.bias
    weights[f"{at}.fc_out.weight"][:, :n] = directions[mlp.writes].T @ mlp.out.T
    weights[f"{at}.fc_out.bias"][:] = directions[mlp.writes].T @ mlp.shift


def _gains(shape: NativeShape) -> Weights:
    """Gains that undo the norms of the streams."""
    embedded = np.full(shape.d_model, np.sqrt(2 / shape.d_model + EPS))
    later = np.full(shape.d_model, np.sqrt((SIZE**2 + 2) / shape.d_model + EPS))
    found = {"ln_out.weight": later}
    for layer in range(shape.n_layers):
        found[f"layers.{layer}.ln1.weight"] = later if layer else embedded
        if shape.d_mlp:
            found[f"layers.{layer}.ln2.weight"] = later
    return found
