"""A booted bridge as circuitlab holds it: its lock, its weights, and the hooks that its user has put on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitlab.errors import UnsupportedModelError
from circuitlab.models.anatomy import linear, mlp_down
from circuitlab.models.digest import edited, weights_digest
from circuitlab.models.exclusive import exclusive, lock_of
from circuitlab.models.families import family_of
from circuitlab.models.model_summary import ModelSummary
from circuitlab.models.recording import Folding
from circuitlab.models.reload import Recipe, how_to_load
from circuitlab.models.rewriting import rewriting
from circuitlab.models.surgery import times
from circuitlab.models.user_hooks import UserHooks, refusal
from circuitlab.parts import ModelSpec


@exclusive
class HeldBridge(ModelSummary):
    """What a model on a bridge is, apart from running it.

    Args:
        bridge: The booted model.
        spec: Its shape.
        folding: How its weights were rewritten since it was booted.
        digest: `weights_digest` from before they were; None where they are as they were saved.
    """

    def __init__(self, bridge: Any, spec: ModelSpec, folding: Folding, digest: str | None) -> None:
        self.bridge, self.spec, self.folding = bridge, spec, folding
        self.family = family_of(bridge)
        self._digest_as_saved = digest
        self._digest_as_rewritten = None if digest is None else weights_digest(bridge)
        self.recipe: Recipe | None = None
        self.lock = lock_of(bridge.original_model)
        # Walking the module tree at every call took a fifth of a sweep over prompts of many lengths.
        # The HuggingFace model has some that the bridge does not list, such as the dropout behind the embedding.
        self._modules = tuple(dict.fromkeys([*bridge.modules(), *bridge.original_model.modules()]))
        self._user_hooks, self._checking = UserHooks(bridge, self._modules), False
        self._unseen = dict[str, str]()

    @property
    def id(self) -> str:
        """What the user called it."""
        return self.spec.name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.bridge.original_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.bridge.original_model.parameters()).dtype

    def weights_sha256(self) -> str:
        """SHA-256 over names and bytes of the checkpoint's weights, and how they were rewritten.

        Computed at each call, about a second for a gigabyte: an edit of weights in place leaves no other trace that
        can be relied on.
        """
        found = weights_digest(self.bridge)
        if self._digest_as_saved is None:
            return found
        return self._digest_as_saved if found == self._digest_as_rewritten else edited(self._digest_as_saved, found)

    def __reduce__(self) -> Any:
        """Pickle and copy by loading again; raises where that cannot be done."""
        return how_to_load(self)

    def rewriting(self, site: str, layer: int, change: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """Whole forward passes inside have `change(activation)` in the place of an activation."""
        return self._rewriting(site, layer, change)

    @contextmanager
    def _rewriting(self, site: str, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        with self.lock, rewriting(self.bridge, site, layer, change):
            yield

    def neuron_weight(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """The output projection of an MLP: what a neuron of value 1 adds to the stream, before any post-norm."""
        return times(linear(mlp_down(self._blocks[layer]))[0].detach(), self.family.residual_multiplier)

    @property
    def embedding_matrix(self) -> Float[Tensor, "_ d_model"]:
        """One row a token, as the checkpoint has it: without positions, and without a factor some models apply."""
        return self.bridge.embed.original_component.weight.detach()

    def unembedding(self) -> tuple[Float[Tensor, "d_model word"], Float[Tensor, " word"]]:
        """Weight and bias from the normed final stream to the logits (before a softcap); zeros without a bias."""
        weight, bias = linear(self.bridge.unembed)
        weight, factor = weight.detach(), self.family.logit_multiplier
        bias = weight.new_zeros(weight.shape[1]) if bias is None else bias.detach()
        return times(weight, factor), times(bias, factor)

    def has_post_norm(self, layer: int) -> bool:
        """Whether norms stand behind attention and MLP and couple the heads, and the neurons (Gemma 2 and 3)."""
        return hasattr(self._blocks[layer], "ln1_post")

    def heads_share_a_norm(self, layer: int) -> bool:
        """Whether one norm spans all heads' queries, and one their keys, so that each moves the others' z (OLMo 2)."""
        return self.family.norms_span_heads

    @property
    def _blocks(self) -> Any:
        return self.bridge.blocks

    def _check_hooks(self, tokens: Int[Tensor, "batch seq"]) -> None:
        if self._checking:
            return
        self._unseen, names = {}, self._user_hooks.names()
        if names:
            self._checking = True
            try:
                self._unseen = self._user_hooks.unseen(self, tokens, names)
            finally:
                self._checking = False

    def require(self, method: str) -> None:
        """Refuse what a method computes from weights where the user's hooks change it.

        Raises:
            UnsupportedModelError: They do; as measured when prompts were last recorded.
        """
        if method in self._unseen and not self._checking and self._user_hooks.names():
            raise UnsupportedModelError(self._unseen[method])

    def refuse_hooks(self, what: str) -> None:
        """Refuse any hook of the user's, for what changes the model's code itself.

        Raises:
            UnsupportedModelError: There is one.
        """
        if names := self._user_hooks.names():
            raise UnsupportedModelError(refusal(names, f"{what} does not see them"))
