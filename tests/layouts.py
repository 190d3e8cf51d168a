"""Model shapes for tests of graphs: every kind of block, small enough to enumerate; and GPT-2's."""

from hypothesis import strategies as st

from circuitlab.parts import ModelSpec


def spec_of(
    n_layers: int, n_heads: int, *, parallel: bool = False, has_mlp: bool = True, d_model: int = 16
) -> ModelSpec:
    """A shape of which only the graph matters."""
    return ModelSpec(
        name=f"L{n_layers}H{n_heads}" + ("-parallel" if parallel else "") + ("" if has_mlp else "-attn-only"),
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_model=d_model,
        d_head=max(1, d_model // n_heads),
        d_vocab=11,
        n_ctx=32,
        parallel=parallel,
        has_mlp=has_mlp,
    )


GPT2 = spec_of(12, 12, d_model=768)
# One of each kind: one node besides the ends, sequential, parallel, attention-only, more layers than heads.
SHAPES = (
    spec_of(1, 1, has_mlp=False),
    spec_of(1, 1),
    spec_of(2, 2),
    spec_of(2, 2, parallel=True),
    spec_of(2, 3, has_mlp=False),
    spec_of(4, 1),
)


def names(spec: ModelSpec) -> str:
    """Test identifier of a shape."""
    return spec.name


specs = st.builds(spec_of, st.integers(1, 3), st.integers(1, 3), parallel=st.booleans(), has_mlp=st.booleans())
