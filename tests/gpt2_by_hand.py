"""GPT-2 once more, node by node in plain torch: the oracle for circuits and edge scores.

Every reader sums the writers it sees, each edge taking a share of the writer's present output and the rest of a fixed
replacement. It shares no code with the library, and shares may be fractions that gradients flow to.
"""

from math import sqrt
from typing import Any

import torch
from architectures import N_HEADS, N_LAYERS, huggingface
from torch import Tensor
from torch.nn.functional import layer_norm, softmax

N_WRITERS, N_READERS = 1 + N_LAYERS * (N_HEADS + 1), N_LAYERS * (3 * N_HEADS + 1) + 1


class Gpt2ByHand:
    """The random GPT-2 of `architectures`, in float64."""

    causal = True

    def __init__(self) -> None:
        self.hf: Any = huggingface("gpt2").double()
        self.weights = {key.removeprefix("transformer."): value.detach() for key, value in self.hf.state_dict().items()}

    def run(self, tokens: Tensor, keep: Tensor, replacement: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits at every position, and every writer's output.

        `keep[writer, reader]` is the share of the edge that carries what the writer says now; the rest carries
        `replacement[writer]`.
        """
        w, said = self.weights, [self._embedding(tokens)]
        constant = torch.zeros(())  # biases of attention layers belong to no writer

        def read(reader: int) -> Tensor:
            return constant + self._read(reader, said, keep, replacement)

        for layer in range(N_LAYERS):
            first = layer * (3 * N_HEADS + 1)
            heads = [
                self._head(layer, h, [read(first + slot * N_HEADS + h) for slot in range(3)]) for h in range(N_HEADS)
            ]
            said += heads
            constant = constant + w[f"h.{layer}.attn.c_proj.bias"]
            said.append(self._mlp(layer, read(first + 3 * N_HEADS)))
        return self._logits(read(N_READERS - 1)), said

    def whole(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same with every edge kept."""
        nothing = [torch.zeros(())] * N_WRITERS
        return self.run(tokens, torch.ones(N_WRITERS, N_READERS), nothing)

    def _read(self, reader: int, said: list[Tensor], keep: Tensor, replacement: list[Tensor]) -> Any:
        shares = zip(keep[:, reader], said, replacement, strict=False)
        return sum(share * now + (1 - share) * other for share, now, other in shares)

    def _embedding(self, tokens: Tensor) -> Tensor:
        return self.weights["wte.weight"][tokens] + self.weights["wpe.weight"][: tokens.shape[1]]

    def _logits(self, stream: Tensor) -> Tensor:
        return self._norm("ln_f", stream) @ self.weights["wte.weight"].T

    def _norm(self, name: str, stream: Tensor) -> Tensor:
        return layer_norm(stream, stream.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _head(self, layer: int, head: int, streams: list[Tensor]) -> Tensor:
        w, d_model = self.weights, streams[0].shape[-1]
        size = d_model // N_HEADS
        q, k, v = (
            self._norm(f"h.{layer}.ln_1", stream) @ w[f"h.{layer}.attn.c_attn.weight"][:, at : at + size]
            + w[f"h.{layer}.attn.c_attn.bias"][at : at + size]
            for at, stream in ((slot * d_model + head * size, stream) for slot, stream in enumerate(streams))
        )
        scores = q @ k.transpose(1, 2) / sqrt(size)
        future = torch.ones_like(scores[0]).triu(1).bool()
        z = softmax(scores.masked_fill(future, float("-inf")) if self.causal else scores, -1) @ v
        return z @ w[f"h.{layer}.attn.c_proj.weight"][head * size : (head + 1) * size]

    def _mlp(self, layer: int, stream: Tensor) -> Tensor:
        w, name = self.weights, f"h.{layer}.mlp"
        x = self._norm(f"h.{layer}.ln_2", stream) @ w[f"{name}.c_fc.weight"] + w[f"{name}.c_fc.bias"]
        return self._activation(x) @ w[f"{name}.c_proj.weight"] + w[f"{name}.c_proj.bias"]

    def _activation(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(sqrt(2 / torch.pi) * (x + 0.044715 * x**3)))
