"""Products by oneDNN: torch's values on every layout, gradients to the activations, and the way without it."""

from types import SimpleNamespace

import pytest
import torch
from architectures import fresh
from torch.nn import functional

from circuitlab.models import products
from circuitlab.models.products import fast_products, gelu_product, product
from circuitlab.models.shortcuts import plain_attention
from circuitlab.models.steps import attend_last_query
from circuitlab.parts import Slot

ROWS, INNER, OUT = 96, 48, 40


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


WEIGHTS = {
    "in by out": lambda: draw(INNER, OUT),
    "out by in": lambda: draw(OUT, INNER).T,
    "a slice of columns": lambda: draw(INNER, 3 * OUT)[:, OUT : 2 * OUT],
    "a slice of rows": lambda: draw(3 * INNER, OUT)[INNER : 2 * INNER],
    "every other column": lambda: draw(INNER, 2 * OUT)[:, ::2],
}


class TestProduct:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("with_bias", [True, False])
    @pytest.mark.parametrize("layout", WEIGHTS)
    def test_is_the_matrix_product(self, layout, with_bias, dtype):
        left, weight = draw(4, ROWS, INNER).to(dtype), WEIGHTS[layout]().to(dtype)
        bias = draw(OUT).to(dtype) if with_bias else None
        wanted = left.double() @ weight.double() + (0 if bias is None else bias.double())
        found = product(left, weight, bias)
        assert found.dtype == dtype
        assert close(found.double(), wanted)

    def test_of_rows_that_lie_apart(self):
        left, weight = draw(ROWS, 2, INNER)[:, 1], draw(INNER, OUT)
        assert close(product(left, weight), left @ weight)

    def test_of_no_rows(self):
        assert product(draw(0, INNER), draw(INNER, OUT), draw(OUT)).shape == (0, OUT)

    def test_gradient_reaches_the_activations(self):
        weight, bias, up = draw(INNER, OUT), draw(OUT), draw(4, ROWS, OUT)
        left = draw(4, ROWS, INNER).requires_grad_()
        (ours,) = torch.autograd.grad(product(left, weight, bias), left, up)
        assert close(ours, up @ weight.T)

    def test_weights_get_no_gradient(self):
        """Neither those that the user asks gradients of, nor their views: a graph of them would be kept for nothing."""
        weight, left = draw(INNER, OUT).requires_grad_(), draw(ROWS, INNER)
        for asking in (weight, 2 * weight):
            assert not product(left, asking, draw(OUT).requires_grad_()).requires_grad
            (ours,) = torch.autograd.grad(product(left.requires_grad_(), asking).sum(), left)
            assert close(ours, asking.detach().sum(1).expand(ROWS, INNER))
            left = left.detach()

    def test_with_gelu(self):
        left, weight, bias = draw(ROWS, INNER), draw(INNER, OUT), draw(OUT)
        wanted = functional.gelu(left @ weight + bias, approximate="tanh")
        assert close(gelu_product(left, weight, bias), wanted)
        with_graph = gelu_product(left.requires_grad_(), weight, bias)
        assert with_graph.requires_grad
        assert close(with_graph, wanted)


class TestLargeWeights:
    """Which library multiplies by them, and in which layout, follows from processor and shapes."""

    INNER, OUT = 256, products.WIDE // 256

    @pytest.mark.parametrize("intel", [True, False])
    @pytest.mark.parametrize("turned", [True, False])
    @pytest.mark.parametrize("rows", [7, products.MANY_ROWS])
    def test_are_the_matrix_product(self, rows, turned, intel, monkeypatch):
        monkeypatch.setattr(products, "_is_intel", lambda: intel)
        weight = draw(self.OUT, self.INNER).T if turned else draw(self.INNER, self.OUT)
        left, bias = draw(rows, self.INNER), draw(self.OUT)
        wanted = left.double() @ weight.double() + bias.double()
        assert torch.allclose(product(left, weight, bias).double(), wanted, rtol=1e-4, atol=1e-4)
        wanted = functional.gelu(wanted, approximate="tanh")
        assert torch.allclose(gelu_product(left, weight, bias).double(), wanted, rtol=1e-4, atol=1e-4)

    @pytest.mark.skipif(products._linear_pointwise() is None, reason="torch was built without oneDNN")
    @pytest.mark.parametrize(("intel", "asked"), [(True, ["gelu"]), (False, ["none", "gelu"])])
    def test_are_left_to_the_quicker_library(self, intel, asked, monkeypatch):
        seen, real = [], products._linear_pointwise()
        monkeypatch.setattr(products, "_is_intel", lambda: intel)
        monkeypatch.setattr(
            products, "_linear_pointwise", lambda: lambda *args: seen.append((args[3], args[1])) or real(*args)
        )
        left, weight, bias = draw(products.MANY_ROWS, self.INNER), draw(self.INNER, self.OUT), draw(self.OUT)
        product(left, weight, bias)
        gelu_product(left, weight, bias)
        assert [name for name, _ in seen] == asked
        assert all(out_in.is_contiguous() for _, out_in in seen), "many rows: the weight is turned"
        gelu_product(left[:7], weight, bias)
        assert not seen[-1][1].is_contiguous(), "few rows: it is not worth it"


FORMS = {
    "linear": lambda x, w, b: functional.linear(x, w.T.contiguous(), b),
    "linear without bias": lambda x, w, b: functional.linear(x, w.T) + b,
    "addmm": lambda x, w, b: torch.addmm(b, x, w),
    "@": lambda x, w, b: x @ w + b,
    "matmul": lambda x, w, b: torch.matmul(x, w) + b,
    "mm": lambda x, w, b: torch.mm(x, w) + b,
    "addmm with factors": lambda x, w, b: torch.addmm(b, x, w, beta=2.0, alpha=0.5),
    "addmm of a matrix": lambda x, w, b: torch.addmm(b.expand(len(x), -1), x, w),
    "weight on the left": lambda x, w, b: w.T @ x.T,
}


class TestMode:
    @pytest.mark.parametrize("form", FORMS)
    def test_changes_no_value(self, form):
        given = draw(ROWS, INNER), draw(INNER, OUT), draw(OUT)
        with fast_products():
            inside = FORMS[form](*given)
        assert close(inside, FORMS[form](*given))

    @pytest.mark.skipif(products._linear_pointwise() is None, reason="torch was built without oneDNN")
    def test_is_asked_inside_and_not_outside(self, monkeypatch):
        asked = []
        real = products._linear_pointwise()
        monkeypatch.setattr(products, "_linear_pointwise", lambda: lambda *args: asked.append(1) or real(*args))
        layer = torch.nn.Linear(INNER, OUT)
        with fast_products():
            layer(draw(ROWS, INNER))
        assert len(asked) == 1
        layer(draw(ROWS, INNER))
        assert len(asked) == 1

    def test_is_left_when_something_raises(self):
        with pytest.raises(ZeroDivisionError), fast_products():
            raise ZeroDivisionError
        assert torch.overrides._get_current_function_mode() is None

    def test_without_the_operator(self, monkeypatch):
        monkeypatch.setattr(products, "_linear_pointwise", lambda: None)
        left, weight, bias = draw(ROWS, INNER), draw(INNER, OUT), draw(OUT)
        with fast_products():
            assert torch.equal(torch.addmm(bias, left, weight), product(left, weight, bias))

    def test_an_operator_of_other_values_is_not_used(self, monkeypatch):
        wrong = type("Ops", (), {"_linear_pointwise": staticmethod(lambda x, w, *rest: x @ w.T)})
        monkeypatch.setattr(torch.ops, "mkldnn", wrong)
        products._linear_pointwise.cache_clear()
        try:
            assert products._linear_pointwise() is None
        finally:
            products._linear_pointwise.cache_clear()


class TestAttendOnce:
    def test_is_attention_of_the_last_query(self):
        rows, seq, heads, d_head, width = 5, 7, 3, 4, 12
        seen, key, value = draw(rows, seq, width), draw(heads, width, d_head), draw(1 + heads, width, d_head)[1:]
        key_bias, value_bias = draw(heads, d_head), draw(1 + heads, d_head)[1:]
        q = draw(rows, 1, heads, d_head)
        k = torch.einsum("rsm,hmd->rshd", seen, key) + key_bias
        v = torch.einsum("rsm,hmd->rshd", seen, value) + value_bias
        everything = torch.ones(rows, seq, dtype=torch.bool)
        weights = {Slot.K: (key, key_bias), Slot.V: (value, value_bias)}
        model = SimpleNamespace(score_scale=lambda _: 0.5, head_weights=lambda _, slot: weights[slot])
        ours = attend_last_query(model, 0, q[:, 0], seen, everything)
        assert close(ours, plain_attention(q, k, v, 0.5)[:, 0])
        shorter = everything.clone()
        shorter[:, 5:] = False
        ours = attend_last_query(model, 0, q[:, 0], seen, shorter)
        assert close(ours, plain_attention(q, k[:, :5], v[:, :5], 0.5)[:, 0])
        assert not close(ours, plain_attention(q, k, v, 0.5)[:, 0])


class TestUsersHooks:
    """Shortcuts pass modules by; where a user's hook changes what a module says, it has to be called."""

    @pytest.mark.parametrize("part", ["mlp", "mlp.in", "mlp.out", "ln2", "attn.o", "attn.q", "ln1"])
    def test_are_heard(self, part):
        model = fresh("gpt2", "float32")
        tokens = torch.arange(8)[None]
        stream, arguments = model.record(tokens).resid_pre[1], model.block_arguments(tokens)

        def step() -> torch.Tensor:
            if part.startswith("mlp") or part == "ln2":
                return model.mlp_output(0, stream)
            q, k, v = (values[None] for values in model.read_attention(0, tuple(Slot), stream[0]))
            return model.attn_output(0, model.attend(0, q, k, v, arguments))

        def tripled(_module: object, _args: object, out: torch.Tensor) -> torch.Tensor:
            return 3 * out

        before = step()
        handle = model.bridge.blocks[0].get_submodule(part).register_forward_hook(tripled)
        try:
            hooked = step()
        finally:
            handle.remove()
        assert not torch.allclose(hooked, before, rtol=1e-3)
        assert torch.equal(step(), before)
