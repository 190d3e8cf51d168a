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

from circuitlab.compiled.program import POSITION, TOKEN, Apply, Attend, Program
from circuitlab.parts import ModelSpec

# Of the constant that holds the norm of the stream, where the variables are of size 1.
SIZE = 300.0
# The layer norm's own, TransformerLens's default.
EPS = 1e-5

Weights = dict[str, np.ndarray]


def compile_weights(program: Program, norm: bool) -> tuple[ModelSpec, Weights]:
    """Shape and weights of the model that runs a program.

    Args:
        program: The program.
        norm: With layer norms, made harmless; else without.

    Returns:
        The shape, and the weights by parameter name, for `native_model`.
    """
    directions, constant = variable_directions(program, norm)
    heads = [operation for operation in program.operations if isinstance(operation, Attend)]
    spec = program.spec(len(constant), max(map(_width, heads), default=1))
    weights = _zeros(spec, max((len(op.bias) for op in program.operations if isinstance(op, Apply)), default=0))
    weights |= {
        "tok_embed.weight": directions[TOKEN],
        "pos.weight": directions[POSITION],
        "head.weight": program.unembed.T @ directions[program.output],
    }
    for operation in program.operations:
        if isinstance(operation, Attend):
            _write_head(program, operation, directions, spec.d_head, weights)
        else:
            _write_mlp(program, operation, directions, weights)
    if norm:
        weights["layers.0.attn.o.bias"] += SIZE * constant
        weights |= _gains(spec)
    return spec, weights


def variable_directions(
    program: Program, norm: bool
) -> tuple[dict[str, Float[np.ndarray, "value d_model"]], Float[np.ndarray, " d_model"]]:
    """Each variable's directions in the residual stream, and one more that belongs to none.

    A variable's value is the stream times its directions.

    Returns:
        The directions by variable, one row a value, and the one that is left.
    """
    sizes = program.sizes
    total = sum(sizes.values())
    if norm:
        d_model = total + 2
        row, column = np.arange(1, d_model)[:, None], np.arange(d_model)
        basis = np.sqrt(2 / d_model) * np.cos(np.pi * row * (column + 0.5) / d_model)
    else:
        basis = np.eye(total + 1, total)  # the direction of no variable is 0
    starts = np.cumsum([0, *sizes.values()])
    return {name: basis[at : at + size] for (name, size), at in zip(sizes.items(), starts, strict=False)}, basis[total]


def _width(head: Attend) -> int:
    """How wide a head must be: every match takes a direction a key value, every preference one."""
    scored = sum(1 if term.query is None else term.weight.shape[1] for term in head.score)
    return max(scored, head.through.shape[1])


def _zeros(spec: ModelSpec, d_mlp: int) -> Weights:
    inner = spec.n_heads * spec.d_head
    sizes = {f"attn.{slot}": (inner, spec.d_model) for slot in "qkv"} | {"attn.o": (spec.d_model, inner)}
    sizes |= {"mlp.fc_in": (d_mlp, spec.d_model), "mlp.fc_out": (spec.d_model, d_mlp)} if d_mlp else {}
    found = {}
    for layer in range(spec.n_layers):
        for part, size in sizes.items():
            found[f"layers.{layer}.{part}.weight"] = np.zeros(size)
            found[f"layers.{layer}.{part}.bias"] = np.zeros(size[0])
    return found


def _write_head(
    program: Program, head: Attend, directions: dict[str, np.ndarray], d_head: int, weights: Weights
) -> None:
    node = program.nodes[head.writes]
    assert node.head is not None, "heads write what an Attend writes"
    at, start = f"layers.{node.layer}.attn", node.head * d_head
    row, scale = start, np.sqrt(d_head)  # scores are divided by it
    for term in head.score:
        key = directions[term.key]
        if term.query is not None:
            rows = slice(row, row + len(key))
            weights[f"{at}.q.weight"][rows] = scale * term.weight.T @ directions[term.query]
            weights[f"{at}.k.weight"][rows] = key
            row += len(key)
        else:
            weights[f"{at}.q.bias"][row] = scale
            weights[f"{at}.k.weight"][row] = term.weight[0] @ key
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


def _gains(spec: ModelSpec) -> Weights:
    """Gains that undo the norms of the streams."""
    embedded, later = (np.full(spec.d_model, np.sqrt(square / spec.d_model + EPS)) for square in (2, SIZE**2 + 2))
    found = {"ln_out.weight": later}
    for layer in range(spec.n_layers):
        found[f"layers.{layer}.ln1.weight"] = later if layer else embedded
        if spec.has_mlp:
            found[f"layers.{layer}.ln2.weight"] = later
    return found
