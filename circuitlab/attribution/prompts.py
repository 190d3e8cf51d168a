"""A prompt in whatever form it is given: text, a pair, or tokens."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from circuitlab.attribution.runs import check_run
from circuitlab.data.limits import check_ids, check_length, clipped, is_whole
from circuitlab.data.pair import Pair
from circuitlab.errors import ConfigError
from circuitlab.models.protocol import Model
from circuitlab.models.text import words_of

Prompt = str | Pair | Tensor


def tokens_of(model: Model, prompt: Prompt, run: str) -> tuple[Int[Tensor, "1 seq"], tuple[str, ...]]:
    """The tokens of a prompt, as numbers and as text.

    Args:
        model: The model whose tokenizer reads text.
        prompt: Text; a pair, of which `run` says which prompt; or token ids, one row or a vector.
        run: "clean" or "corrupt".

    Returns:
        Token ids, shape [1, seq], and the text of each token.

    Raises:
        ConfigError: There is no token, or it is no prompt.
        TokenError: There are more tokens than the context holds, or ids that the model does not have.
        ModelError: Text, and the model has no tokenizer.
    """
    check_run(run)
    if isinstance(prompt, Pair):
        ids, words = (
            (prompt.clean_ids, prompt.clean_tokens) if run == "clean" else (prompt.corrupt_ids, prompt.corrupt_tokens)
        )
    elif isinstance(prompt, str):
        encoded = model.text.encode(prompt)
        ids, words = encoded.ids, encoded.tokens
    elif is_whole(prompt) and prompt.squeeze(0).ndim == 1:
        ids = tuple(int(i) for i in prompt.flatten())
        check_ids(ids, model.spec, "the prompt")
        words = words_of(model, ids)
    else:
        got = f"{prompt.dtype} {tuple(prompt.shape)}" if torch.is_tensor(prompt) else type(prompt).__name__
        raise ConfigError(f"a prompt is a text, a pair of a task, or one row of token ids; got {got}.")
    if not ids:
        raise ConfigError("the prompt has no token. Give at least one word.")
    check_length(len(ids), model.spec.n_ctx, f"the prompt {clipped(text_of(prompt, tuple(words), run))}")
    return torch.tensor([ids], dtype=torch.long, device=model.device), tuple(words)


def text_of(prompt: Prompt, tokens: tuple[str, ...], run: str) -> str:
    """A prompt as a reader knows it."""
    if isinstance(prompt, Pair):
        return prompt.clean if run == "clean" else prompt.corrupt
    return prompt if isinstance(prompt, str) else "".join(tokens)
