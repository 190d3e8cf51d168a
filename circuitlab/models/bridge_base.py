"""A booted bridge: its forward pass, its lock, its weights, and its user's hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitlab.data.limits import check_tokens
from circuitlab.digests import sha256
from circuitlab.errors import ModelError, UnsupportedModelError
from circuitlab.models.anatomy import adds, linear
from circuitlab.models.families import family_of
from circuitlab.models.modes import exclusive, in_ordinary_modes, lock_of
from circuitlab.models.norms import agree
from circuitlab.models.recording import AS_SAVED, Folding
from circuitlab.models.revisions import AT_HEAD
from circuitlab.models.surgery import ForwardStoppedError, evaluating, first_tensor, hooks, norm_gain, times
from circuitlab.models.user_hooks import UserHooks, refusal
from circuitlab.parts import Layout, ModelSpec
from circuitlab.summary import Summary, plural, short

# Loads a model again, given its device.
Recipe = Callable[..., Any]


@exclusive
class BridgeBase(Summary):
    """What a model on a bridge is, without the steps of its blocks.

    Args:
        bridge: The booted model.
        spec: Its shape.
        folding: How its weights were rewritten since it was booted.
        digest: `weights_digest` from before they were; None where they are as they were saved.

    Attributes:
        family: What its modules do not show.
        modules: Every module in it, walked once.
        recipe: What loads it again; None where its user booted it.
        checkpoint: Which checkpoint of its repository it is.
        lock: Held while the model runs.
    """

    def __init__(self, bridge: Any, spec: ModelSpec, folding: Folding, digest: str | None) -> None:
        self.bridge, self.spec, self.folding, self._blocks = bridge, spec, folding, bridge.blocks
        self.family = family_of(bridge)
        self._digest_as_saved = digest
        self._digest_as_rewritten = None if digest is None else weights_digest(bridge)
        self.recipe: Recipe | None = None
        self.checkpoint = AT_HEAD
        self.lock, self._weight = lock_of(bridge.original_model), next(bridge.original_model.parameters())
        # Walking the module tree at every call took a fifth of a sweep over prompts of many lengths.
        # The HuggingFace model has some that the bridge does not list, such as the dropout after the embedding.
        self.modules = tuple(dict.fromkeys([*bridge.modules(), *bridge.original_model.modules()]))
        self._user_hooks, self._checking = UserHooks(bridge, self.modules), False
        self._unseen = dict[str, str]()

    @property
    def id(self) -> str:
        """What the user called it."""
        return self.spec.name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self._weight.dtype

    @property
    def logit_cap(self) -> float | None:
        """The bound c of logits that leave the model as c tanh(logit / c); None where they leave as they are."""
        cap = getattr(self.bridge.cfg, "output_logits_soft_cap", None)
        return float(cap) if cap is not None and cap > 0 else None

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq d_vocab"]:
        """The model's own forward pass; raises what `check_tokens` does for tokens that the model cannot read.

        Returns:
            Logits `[batch, seq, d_vocab]`.
        """
        check_tokens(tokens, self.spec)
        with evaluating(self.modules):
            return self.bridge(tokens.to(self.device).long(), return_type="logits", use_cache=False)

    def forward_until(self, module: nn.Module, tokens: Int[Tensor, "batch seq"]) -> None:
        """The same up to this module, which is not run: unembedding every position is a third of GPT-2's work."""

        def stop(_args: tuple, _kwargs: dict) -> None:
            raise ForwardStoppedError

        with hooks() as add, suppress(ForwardStoppedError):
            add.call(module, stop)
            self.forward(tokens)

    def weights_sha256(self) -> str:
        """SHA-256 over names and bytes of the checkpoint's weights, and how they were rewritten.

        Computed at each call, about a second for a gigabyte: an edit of weights in place leaves no other trace that
        can be relied on.

        Returns:
            64 hexadecimal digits; those of the checkpoint where nothing was edited.
        """
        found = weights_digest(self.bridge)
        if self._digest_as_saved is None:
            return found
        if found == self._digest_as_rewritten:
            return self._digest_as_saved
        return sha256(f"{self._digest_as_saved} edited {found}")

    def __reduce__(self) -> Any:
        """Pickle and copy by loading again.

        Raises:
            ModelError: It was booted by its user, who alone knows how.
            UnsupportedModelError: There are hooks on it, which would be lost.
        """
        if self.recipe is None:
            raise ModelError(
                f"model {self.id!r} was booted by its user and has no name to be loaded again by: it can neither be "
                "pickled nor copied. Load it by its name or folder, or boot it in each process."
            )
        self.refuse_hooks("a pickled or copied model, which is loaded again,")
        return _loaded_again, (self.recipe, str(self.device), self.weights_sha256())

    @contextmanager
    def rewriting(self, site: str, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Whole forward passes inside have `change(activation)` in the place of an activation; see `Model`.

        Under the bridge the stream in the middle of a block has no module of its own whose output all that follows
        reads: it is changed by changing what attention adds.
        """
        block, family, factor = self._blocks[layer], self.family, self.family.residual_multiplier
        before: list[Tensor] = []
        with self.lock, hooks() as add:
            if site in ("attn_out", "mlp_out"):
                module = adds(block, site.removesuffix("_out"), family)
                add.output(module, lambda out: change(out * factor) / factor)
            elif site == "head_z":
                add.input(block.attn.o, lambda z: change(z.flatten(2)).reshape(z.shape))
            elif site == "neuron":
                add.output(block.mlp.out.hook_in, change)
            elif site == "resid_mid":
                add.input(block, before.append)
                module = adds(block, "attn", family)
                add.output(module, lambda out: (change(before[-1] + out * factor) - before.pop()) / factor)
            else:
                assert site in ("resid_pre", "resid_post"), f"no way to rewrite {site}"
                (add.input if site == "resid_pre" else add.output)(block, change)
            yield

    def neuron_weight(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """The output projection of an MLP: what a neuron of value 1 adds to the stream, before any post-norm.

        Returns:
            The matrix `[neuron, d_model]`.
        """
        return times(linear(self._blocks[layer].mlp.out)[0].detach(), self.family.residual_multiplier)

    @property
    def embedding_matrix(self) -> Float[Tensor, "_ d_model"]:
        """One row a token, as the checkpoint has it: without positions, and without a factor some models apply."""
        return self.bridge.embed.original_component.weight.detach()

    def unembedding(
        self, words: Int[Tensor, " word"] | None = None
    ) -> tuple[Float[Tensor, "d_model word"], Float[Tensor, " word"]]:
        """Weight and bias from the normed final stream to the logits (before a softcap); zeros without a bias.

        Returns:
            Weight `[d_model, word]` and bias `[word]`, of the whole vocabulary or of `words` in their order.
        """
        (weight, bias), chosen = linear(self.bridge.unembed), slice(None) if words is None else words
        weight, factor = weight[:, chosen].detach(), self.family.logit_multiplier
        bias = weight.new_zeros(weight.shape[1]) if bias is None else bias[chosen].detach()
        return times(weight, factor), times(bias, factor)

    def has_post_norm(self, layer: int) -> bool:
        """Whether norms follow attention and MLP, so that what one head or neuron adds depends on all (Gemma 2).

        Returns:
            Whether they do.
        """
        return hasattr(self._blocks[layer], "ln1_post")

    def heads_share_a_norm(self, layer: int) -> bool:
        """Whether one norm spans all heads' queries, and one their keys, so that each moves the others' z (OLMo 2).

        Returns:
            Whether it does.
        """
        return self.family.norms_span_heads

    @torch.no_grad()
    def embedding_parts(
        self, tokens: Int[Tensor, "batch seq"], start: Float[Tensor, "batch seq d_model"]
    ) -> dict[str, Float[Tensor, "batch seq d_model"]]:
        """The stream at its start as token and position embedding, where these are modules that add up to it.

        Args:
            tokens: The prompts.
            start: The stream before the first block.

        Returns:
            "token" and "position", or "embedding" alone (one table, or something between tables and first block).
        """
        tables: dict[str, Any] = {"token": getattr(self.bridge, "embed", None)}
        tables["position"] = getattr(self.bridge, "pos_embed", None)
        kept: dict[str, Tensor] = {}
        if all(isinstance(table, nn.Module) for table in tables.values()):
            with hooks() as add:
                for part, table in tables.items():
                    add.output(table, lambda value, part=part: kept.__setitem__(part, value.detach()))
                self.forward_until(self._blocks[0], tokens)
        if set(kept) == set(tables):
            parts = {part: kept[part].expand_as(start) for part in tables}
            if agree(parts["token"] + parts["position"], start, share=0.01):
                return parts
        return {"embedding": start}

    @torch.no_grad()
    def attention_bias(self, layer: int, z: Float[Tensor, "row head d_head"]) -> Float[Tensor, "row d_model"] | None:
        """What the bias of an attention layer adds to the stream; a post-norm is taken with this z's scale.

        Returns:
            Values `[row, d_model]`; None without a bias.
        """
        block = self._blocks[layer]
        bias = linear(block.attn.o)[1]
        if bias is None:
            return None
        added = times(bias.detach(), self.family.residual_multiplier).expand(len(z), -1)
        if self.has_post_norm(layer):
            return added * norm_gain(block.ln1_post, first_tensor(block.attn.o(z.flatten(1)[None]))[0])
        return added

    @torch.no_grad()
    def neurons_along(
        self, layer: int, hidden: Float[Tensor, "row neuron"], direction: Float[Tensor, "row d_model"]
    ) -> tuple[Float[Tensor, "row neuron"], Float[Tensor, " row"] | None]:
        """What each neuron of an MLP, and its bias, write along a direction; a post-norm with these neurons' scale.

        Returns:
            Products `[row, neuron]`, and those of the bias `[row]` or None.
        """
        block = self._blocks[layer]
        weight, bias = linear(block.mlp.out)
        direction = times(direction, self.family.residual_multiplier)
        if self.has_post_norm(layer):
            direction = direction * norm_gain(block.ln2_post, first_tensor(block.mlp.out(hidden[None]))[0])
        by_neuron = hidden * (direction @ weight.detach().T)
        return by_neuron, None if bias is None else direction @ bias.detach()

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

    def _summary(self) -> str:
        spec = self.spec
        shape = f"{plural(spec.n_layers, 'layer')}, {plural(spec.n_heads, 'head')} each, width {spec.d_model:,}"
        return f"{short(spec.name, 40)}: {shape}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        spec = self.spec
        yield "architecture", type(self.bridge.original_model).__name__
        yield "parts", "attention and MLP" if spec.has_mlp else "attention only"
        yield "key/value heads", spec.n_kv_heads
        yield "graph", plural(Layout.of(spec).n_edges, "edge")
        context = "no limit" if spec.n_ctx is None else f"{spec.n_ctx:,}"
        yield "vocabulary", f"{spec.d_vocab:,} tokens, context {context}"
        yield "weights", f"{str(self.dtype).removeprefix('torch.')}, on {self.device}"
        yield "folding", self.folding


def weights_digest(bridge: Any, folding: Folding = AS_SAVED) -> str:
    """SHA-256 over names and bytes of all weights, and over how they are about to be rewritten.

    Rewritten weights are products and means, whose last bits may be another machine's; the checkpoint's are not.

    Args:
        bridge: The booted model, its weights as saved.
        folding: What will be done to them.

    Returns:
        64 hexadecimal digits.
    """
    weights = sorted(bridge.original_model.state_dict().items())
    rewritten = (name for name in ("fold_ln", "center_weights") if getattr(folding, name))
    return sha256(*chain.from_iterable(weights), *rewritten)


@in_ordinary_modes
def _loaded_again(recipe: Recipe, device: str, digest: str) -> Any:
    """Load a model that was pickled or copied with this `weights_sha256()`, on the device where it was.

    Raises:
        ModelError: It has other weights now.
    """
    model = recipe(device=device)
    if (found := model.weights_sha256()) != digest:
        raise ModelError(
            f"model {model.id!r} has other weights ({found[:12]}) than the one that was pickled or copied "
            f"({digest[:12]}), which was edited after it was loaded, or whose files have changed. "
            "Save the edited model (save_pretrained) and load its folder."
        )
    return model
