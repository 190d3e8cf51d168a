"""Matrix products by oneDNN, which torch ships with and uses for half precision, where torch itself would use MKL.

MKL takes its slow way on processors that are not Intel's: on an AMD EPYC with AVX-512 it multiplies float32 matrices at
190 GFLOP/s and oneDNN at 430. On Intel's, MKL is the quicker one with large weights, and products with these stay its
own. While `fast_products` is entered, every other product with a two-dimensional weight that a model's code
asks torch for goes to oneDNN if it is float32 on a CPU. The values agree up to rounding, which a probe
confirms before the first use. Which library multiplies follows from processor and shapes alone, never from a clock: the
same run gives the same bytes.

The operator has no public name in torch (its compiler uses it); where it is missing or gives other values, products
stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Smaller products cost more in the call than in the work.
SMALLEST = 1 << 14
# Weights from this size on are MKL's where it is quick (an Intel Xeon, two threads, 4,096 rows by 3,072 x 768: 77 ms
# against 121 ms; by 512 x 128 it would be slower).
LARGE = 1 << 19
# And for so many rows oneDNN gets weights from this size on the other way round: it reads [in, out], as GPT-2 stores
# them, a third more slowly than [out, in] (4,096 rows by 768 x 3,072, and GELU: 155 against 103 ms, turning 7 ms).
WIDE, MANY_ROWS = 1 << 20, 2048


def product(
    left: Float[Tensor, "*row inner"], weight: Float[Tensor, "inner out"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*row out"]:
    """`left @ weight + bias`, by the faster library; gradients reach `left` alone.

    Returns:
        The product, in the dtype of `left`.
    """
    if not _suits(left, weight, bias):
        return functional.linear(left, weight.detach().T, None if bias is None else bias.detach())
    return _product(left, weight, bias)


def gelu_product(
    left: Float[Tensor, "*row inner"], weight: Float[Tensor, "inner out"], bias: Float[Tensor, " out"]
) -> Float[Tensor, "*row out"]:
    """`gelu(left @ weight + bias)`, the tanh approximation, in one kernel; for runs without gradients.

    Returns:
        Values `[..., out]`.
    """
    if _is_possible(left, weight, bias) and not (torch.is_grad_enabled() and left.requires_grad):
        return _multiplied(left, weight.detach(), bias.detach(), "gelu", "tanh")
    return functional.gelu(product(left, weight, bias), approximate="tanh")


def products_by_head(
    values: Sequence[Float[Tensor, "*row inner"]] | Float[Tensor, "chosen *row inner"],
    weight: Float[Tensor, "head inner out"],
    bias: Float[Tensor, "head out"] | None,
    heads: Sequence[int],
) -> Float[Tensor, "chosen *row out"]:
    """Each chosen head's values times its own weight; one batched product where gradients are taken.

    Args:
        values: Of each chosen head, in the order of `heads`.
        weight: Of all heads.
        bias: Of all heads; None for none.
        heads: The chosen ones.

    Returns:
        One product a chosen head, in the order of `heads`.
    """
    if torch.is_grad_enabled():
        whole, chosen = values if isinstance(values, Tensor) else torch.stack(list(values)), list(heads)
        if chosen != list(range(len(weight))):
            weight, bias = weight[chosen], None if bias is None else bias[chosen]
        found = torch.bmm(whole.flatten(1, -2), weight).unflatten(1, whole.shape[1:-1])
        return found if bias is None else found + bias[:, None, None]
    found = [
        product(one, weight[head], None if bias is None else bias[head])
        for head, one in zip(heads, values, strict=True)
    ]
    # A single one is not copied, which for small products is a third of the time.
    return found[0][None] if len(found) == 1 else torch.stack(found)


class fast_products(TorchFunctionMode):  # noqa: N801  a context manager, used like a function
    """While entered, products with a two-dimensional float32 weight on a CPU are oneDNN's.

    Gradients reach the activations; weights and biases get none.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        order = _ORDERS.get(func)
        if order is not None and not kwargs:
            factors = order(*args)
            if _suits(*factors):
                return _product(*factors)
        return func(*args, **(kwargs or {}))


# From the arguments of a product of torch's to left, weight [in, out] and bias.
_ORDERS: dict[Any, Callable[..., tuple[Any, Any, Any]]] = {
    functional.linear: lambda left, weight, bias=None: (left, weight.T, bias),
    torch.addmm: lambda bias, left, weight: (left, weight, bias),
}
_ORDERS |= dict.fromkeys(
    (torch.matmul, torch.mm, Tensor.matmul, Tensor.__matmul__), lambda left, weight: (left, weight, None)
)


def _suits(left: Any, weight: Any, bias: Any) -> bool:
    """Whether oneDNN can multiply them and is the quicker one."""
    return _is_possible(left, weight, bias) and not (_is_intel() and weight.numel() >= LARGE)


def _is_possible(left: Any, weight: Any, bias: Any) -> bool:
    return (
        isinstance(left, Tensor)
        and isinstance(weight, Tensor)
        and weight.ndim == 2
        and left.ndim >= 2
        and left.dtype == weight.dtype == torch.float32
        and left.device.type == weight.device.type == "cpu"
        and (bias is None or (bias.dtype == torch.float32 and bias.ndim == 1))
        and left.numel() * weight.shape[1] >= SMALLEST
        and left.shape[-1] == weight.shape[0]
        # A parameter, or a view of one, and not a value in a graph.
        and (weight if weight._base is None else weight._base).grad_fn is None
        and _linear_pointwise() is not None
    )


def _product(left: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if torch.is_grad_enabled() and left.requires_grad:
        return _Product.apply(left, weight, bias)  # pyright: ignore[reportReturnType]
    return _multiplied(left, weight, bias)


def _multiplied(left: Tensor, weight: Tensor, bias: Tensor | None, *activation: str) -> Tensor:
    """The operator on memory that it is quick with: a weight that is a slice of another is a hundred times slower."""
    name, kind = activation or ("none", "")
    out_in, n_rows = weight.T, left.shape[:-1].numel()
    transposed = weight.numel() >= WIDE and n_rows >= MANY_ROWS
    if transposed or not weight.is_contiguous():
        out_in = out_in.contiguous()
    return _linear_pointwise()(left.contiguous(), out_in, bias, name, [], kind)


class _Product(torch.autograd.Function):
    """A product whose way back is one, too."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _multiplied(left, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _multiplied(gradient, ctx.weight.T, None), None, None


@cache
def _is_intel() -> bool:
    """Whether the processor is one that MKL takes its quick way on; not where this is unknown."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


@cache
def _linear_pointwise() -> Any:
    """The linear layer of oneDNN, `(input, weight [out, in], bias, ...)`, if it is there and gives torch's values."""
    if not torch.backends.mkldnn.is_available():
        return None
    wave = torch.linspace(-4.0, 4.0, 40 * 48, dtype=torch.float32).sin()
    left, weight, bias = wave[: 40 * 24].view(40, 24), wave[: 24 * 36].cos().view(24, 36), wave[:36]
    try:
        operator = torch.ops.mkldnn._linear_pointwise
        with torch.no_grad():
            plain = operator(left, weight.T, bias, "none", [], "")
            gelu = operator(left, weight.T, bias, "gelu", [], "tanh")
    except (AttributeError, RuntimeError, TypeError):
        return None
    wanted = left.double() @ weight.double() + bias.double()
    close = torch.allclose(plain.double(), wanted, rtol=1e-5, atol=1e-5)
    close &= torch.allclose(gelu.double(), functional.gelu(wanted, approximate="tanh"), rtol=1e-5, atol=1e-5)
    return operator if close else None
