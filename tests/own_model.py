"""A GPT-2 in plain torch with the members of `Model`: what a user's own model has to give, and nothing else.

Of the library it uses the records of `circuitlab.models.recording` and the shape, and no code that runs a model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from circuitlab.errors import ModelError
from circuitlab.models.recording import Bos, Folding, Recording
from circuitlab.parts import ModelSpec, Slot, Stage

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "head_z", "neuron")


class OwnModel:
    """The model whose HuggingFace weights these are.

    Args:
        weights: By HuggingFace's names.
        spec: The shape.
        standard: Whether it says that its attention is standard, so that shortcuts are taken.
    """

    logit_cap, folding, id = None, Folding(), "own"

    def __init__(self, weights: dict[str, Tensor], spec: ModelSpec, standard: bool = True) -> None:
        self._weights, self.spec, self._standard = weights, spec, standard
        self._changes: dict[tuple[str, int], Callable[[Tensor], Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return self["wte.weight"].dtype

    @property
    def text(self) -> Any:
        raise ModelError("this model has no tokenizer. Give tokens instead: PairBatch.from_tokens(...).")

    @property
    def bos(self) -> Bos:
        return self.text.bos

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[f"transformer.{name}"]

    def weights_sha256(self) -> str:
        return "0" * 64

    def block_arguments(self, tokens: Tensor) -> Any:
        return tokens.shape[1]

    # Whole forward passes.

    @contextmanager
    def rewriting(self, site: str, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        assert site in SITES
        self._changes[site, layer] = change
        try:
            yield
        finally:
            del self._changes[site, layer]

    def _changed(self, site: str, layer: int, values: Tensor) -> Tensor:
        change = self._changes.get((site, layer))
        return values if change is None else change(values)

    def embedding(self, tokens: Tensor) -> Tensor:
        return self["wte.weight"][tokens] + self["wpe.weight"][: tokens.shape[1]]

    @torch.no_grad()
    def record(self, tokens: Tensor) -> Recording:
        stream = self.embedding(tokens)
        kept: dict[str, list[Tensor]] = {
            name: [] for name in ("resid_pre", "attn_out", "mlp_out", "q", "k", "v", "pattern", "z")
        }
        for layer in range(self.spec.n_layers):
            stream = self._changed("resid_pre", layer, stream)
            flat = self.read_attention(layer, tuple(Slot), stream.flatten(0, 1))
            q, k, v = (values.unflatten(0, tokens.shape) for values in flat)
            pattern = self._pattern(q, k)
            z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
            z = self._changed("head_z", layer, z.flatten(2)).view_as(z)
            attn_out = self._changed("attn_out", layer, self.attn_output(layer, z))
            middle = self._changed("resid_mid", layer, stream + attn_out)
            hidden = self._changed("neuron", layer, self.mlp_hidden(layer, middle))
            mlp_out = self._changed("mlp_out", layer, self.mlp_from_hidden(layer, hidden))
            values = {"resid_pre": stream, "attn_out": middle - stream, "mlp_out": mlp_out}
            for name, value in {**values, "q": q, "k": k, "v": v, "pattern": pattern, "z": z}.items():
                kept[name].append(value)
            stream = self._changed("resid_post", layer, middle + mlp_out)
        return Recording(**{name: tuple(values) for name, values in kept.items()}, resid_final=stream)

    def run_blocks(self, stream: Tensor, first: int, arguments: Any, stop: int | None = None) -> Tensor:
        for layer in range(first, self.spec.n_layers if stop is None else stop):
            flat = self.read_attention(layer, tuple(Slot), stream.flatten(0, 1))
            q, k, v = (values.unflatten(0, stream.shape[:2]) for values in flat)
            stream = stream + self.attn_output(layer, self.attend(layer, q, k, v, arguments))
            stream = stream + self.mlp_output(layer, stream)
        return stream

    # Ends.

    def final_norm(self, stream: Tensor) -> Tensor:
        return self._norm("ln_f", stream)

    def unembedding(self, words: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weight = self["wte.weight"].T if words is None else self["wte.weight"].T[:, words]
        return weight, weight.new_zeros(weight.shape[1])

    def logits(self, stream: Tensor, tokens: Tensor | None = None) -> Tensor:
        weight, bias = self.unembedding(tokens)
        return self.final_norm(stream) @ weight + bias

    @property
    def embedding_matrix(self) -> Tensor:
        return self["wte.weight"]

    def embedding_parts(self, tokens: Tensor, start: Tensor) -> dict[str, Tensor]:
        token = self["wte.weight"][tokens]
        return {"token": token, "position": self["wpe.weight"][: tokens.shape[1]].expand_as(start)}

    # Attention.

    def attn_input(self, layer: int, stream: Tensor) -> Tensor:
        return self._norm(f"h.{layer}.ln_1", stream)

    def attn_norm_gradients(self, layer: int, stream: Tensor, gradients: Tensor) -> Tensor:
        with torch.enable_grad():
            copies = stream.detach().expand_as(gradients).clone().requires_grad_()
            return torch.autograd.grad(self.attn_input(layer, copies), copies, gradients)[0]

    def head_weights(self, layer: int, slot: Slot) -> tuple[Tensor, Tensor | None]:
        number = tuple(Slot).index(slot)
        weight = self[f"h.{layer}.attn.c_attn.weight"].chunk(3, 1)[number]
        bias = self[f"h.{layer}.attn.c_attn.bias"].chunk(3)[number]
        return weight.unflatten(1, (-1, self.spec.d_head)).movedim(1, 0), bias.unflatten(0, (-1, self.spec.d_head))

    def read_attention(self, layer: int, slots: Sequence[Slot], stream: Tensor) -> tuple[Tensor, ...]:
        read, weights = self.attn_input(layer, stream), [self.head_weights(layer, slot) for slot in slots]
        return tuple(torch.einsum("tm,hmd->thd", read, weight) + bias for weight, bias in weights)

    def _pattern(self, q: Tensor, k: Tensor) -> Tensor:
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * self.spec.d_head**-0.5
        sees = torch.ones(k.shape[1], k.shape[1], dtype=torch.bool).tril()[-q.shape[1] :]
        return scores.masked_fill(~sees, -torch.inf).softmax(-1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, arguments: Any) -> Tensor:
        assert arguments == k.shape[1]
        return torch.einsum("bhqk,bkhd->bqhd", self._pattern(q, k), v)

    def score_scale(self, layer: int) -> float | None:
        return self.spec.d_head**-0.5 if self._standard else None

    def attn_output(self, layer: int, z: Tensor) -> Tensor:
        return z.flatten(-2) @ self[f"h.{layer}.attn.c_proj.weight"] + self[f"h.{layer}.attn.c_proj.bias"]

    def head_outputs(self, layer: int, z: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        chosen = list(range(self.spec.n_heads)) if heads is None else list(heads)
        weight = self[f"h.{layer}.attn.c_proj.weight"].unflatten(0, (self.spec.n_heads, -1))
        return torch.einsum("bshd,hdm->hbsm", z[:, :, chosen], weight[chosen])

    def attention_bias(self, layer: int, z: Tensor) -> Tensor | None:
        return self[f"h.{layer}.attn.c_proj.bias"].expand(len(z), -1)

    def has_post_norm(self, layer: int) -> bool:
        return False

    def heads_share_a_norm(self, layer: int) -> bool:
        return False

    # MLPs.

    def mlp_hidden(self, layer: int, stream: Tensor, stage: Stage = Stage.POST) -> Tensor:
        before = self._norm(f"h.{layer}.ln_2", stream) @ self[f"h.{layer}.mlp.c_fc.weight"]
        before = before + self[f"h.{layer}.mlp.c_fc.bias"]
        return before if stage is Stage.PRE else functional.gelu(before, approximate="tanh")

    def mlp_from_hidden(self, layer: int, hidden: Tensor, stage: Stage = Stage.POST) -> Tensor:
        hidden = functional.gelu(hidden, approximate="tanh") if stage is Stage.PRE else hidden
        return hidden @ self.neuron_weight(layer) + self[f"h.{layer}.mlp.c_proj.bias"]

    def mlp_output(self, layer: int, stream: Tensor) -> Tensor:
        return self.mlp_from_hidden(layer, self.mlp_hidden(layer, stream))

    def neuron_weight(self, layer: int) -> Tensor:
        return self[f"h.{layer}.mlp.c_proj.weight"]

    def neurons_along(self, layer: int, hidden: Tensor, direction: Tensor) -> tuple[Tensor, Tensor | None]:
        return hidden * (direction @ self.neuron_weight(layer).T), direction @ self[f"h.{layer}.mlp.c_proj.bias"]

    def _norm(self, name: str, stream: Tensor) -> Tensor:
        return functional.layer_norm(
            stream, (self.spec.d_model,), self[f"{name}.weight"], self[f"{name}.bias"], eps=1e-5
        )
