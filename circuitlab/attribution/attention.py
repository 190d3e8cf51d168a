"""Attention patterns of chosen heads on one prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from circuitlab.attribution.record import AttentionPatterns
from circuitlab.attribution.request import Prompt, text_of, tokens_of
from circuitlab.errors import ConfigError, UnknownNameError
from circuitlab.models.modes import model_function
from circuitlab.models.protocol import Model, Recording
from circuitlab.parts import Kind, Layout, Node


@model_function
@torch.no_grad()
def attention(
    model: Model,
    prompt: Prompt,
    heads: str | Node | Iterable[str | Node] | None = None,
    *,
    run: str = "clean",
    notes: Mapping[str, str] | None = None,
) -> AttentionPatterns:
    """The attention patterns of chosen heads on one prompt.

    Args:
        model: A loaded model.
        prompt: Text, a pair of a task, or one row of token ids.
        heads: Names such as "a3.h2", or nodes; all heads of the model by default.
        run: Of a pair: "clean" or "corrupt".
        notes: Head -> a short note, shown with its name.

    Returns:
        The patterns of the heads, shape [head, query, key].

    Raises:
        UnknownNameError: A head that the model does not have, or no such run.
        ConfigError: No head, no prompt, or one too long.
        ModelError: Text, and the model has no tokenizer.

    Example:
        >>> from circuitlab import attention, load_model, load_task
        >>> model = load_model("bundled")
        >>> pairs = load_task("name-throw").pairs(model, n=4)
        >>> attention(model, pairs.discovery[0], ["a0.h1", "a0.h6"]).patterns.shape
        (2, 21, 21)
    """
    return attention_in(model, prompt, heads, run=run, notes=notes)


def attention_in(
    model: Model,
    prompt: Prompt,
    heads: str | Node | Iterable[str | Node] | None,
    recorded: Recording | None = None,
    *,
    run: str = "clean",
    notes: Mapping[str, str] | None = None,
) -> AttentionPatterns:
    """The same, of a recording of this one prompt if there is one; other arguments as of `attention`.

    Returns:
        The patterns.
    """
    ids, tokens = tokens_of(model, prompt, run)
    chosen = _head_nodes(Layout.of(model.spec), heads)
    recorded = model.record(ids) if recorded is None else recorded
    patterns = torch.stack([recorded.pattern[node.layer or 0][0, node.head] for node in chosen])
    return AttentionPatterns(
        tokens=tokens,
        heads=tuple(node.name for node in chosen),
        patterns=patterns.double().cpu().numpy(),
        title=text_of(prompt, tokens, run),
        notes=dict(notes or {}),
    )


def _head_nodes(layout: Layout, heads: str | Node | Iterable[str | Node] | None) -> tuple[Node, ...]:
    """Heads by their names, each once, in the order given.

    Raises:
        UnknownNameError: A name that is none of the model's heads.
        ConfigError: No head, or one name alone that is given as text.
    """
    there = {node.name: node for node in layout.writers if node.kind is Kind.HEAD}
    if heads is None:
        return tuple(there.values())
    if isinstance(heads, str | Node):
        heads = [heads]
    names = dict.fromkeys(head.name if isinstance(head, Node) else str(head) for head in heads)
    if unknown := [name for name in names if name not in there]:
        raise UnknownNameError.of("head", unknown[0], there)
    if not names:
        raise ConfigError("no head is chosen; name some, such as heads=['a0.h1'], or leave heads out for all.")
    return tuple(there[name] for name in names)
