"""Tracr's models: their weights in a model that circuitlab runs, and their true edges from the labels of the stream.

Tracr compiles a RASP expression into a transformer whose residual stream has a labelled direction for every value of
every sub-expression. Each head computes one aggregation, each MLP one or more maps; the input has tokens, indices and a
constant. What a head or MLP writes and reads, by label, is how one sub-expression depends on others: it gives a
`Program`, and the program gives the true edges by the same rule as for all compiled models.

Neither tracr nor JAX is imported: an assembled model is read through its attributes. `pip install circuitlab[tracr]`
installs both.

References:
    Lindner et al. 2023, arXiv:2301.05062.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from circuitlab.compiled.build import CompiledModel, check_dtype
from circuitlab.compiled.entry import Drawn, Entry
from circuitlab.compiled.program import POSITION, TOKEN, Apply, Attend, Match, Operation, Program
from circuitlab.compiled.truth import logits_of, run_program
from circuitlab.errors import ConfigError, UnsupportedModelError
from circuitlab.models.load import DTYPES
from circuitlab.models.modes import model_function
from circuitlab.models.native import native_model
from circuitlab.parts import Kind, Node

# Prompts that are tried for a pair whose outputs differ.
TRIES = 1000
# A value of a one-hot variable, and a difference of a number, that counts.
PRESENT, DIFFERENT = 0.5, 1e-3

Matrices = dict[str, np.ndarray]


@model_function
def from_tracr(assembled: Any, *, name: str = "tracr", dtype: str = "float64") -> CompiledModel:
    """Load a model that tracr assembled, with what its true circuit follows from.

    Args:
        assembled: What `tracr.compiler.compiling.compile_rasp_to_model` returns, bidirectional as by default or with
            `causal=True`, with the vocabulary, length and `compiler_bos` of the caller's choice.
        name: What the model is called.
        dtype: "float64" (default) or "float32".

    Returns:
        The model. It predicts the values of tracr's output encoder, numbered as there; for a numerical output x the two
        logits x / 2 and -x / 2. Its pairs are random prompts of full length, every other one with a single token
        changed.

    Raises:
        UnsupportedModelError: It has layer norms, or holds what no RASP expression compiles to.
        ConfigError: Another dtype.

    Example:
        >>> from tracr.compiler import compiling, lib  # doctest: +SKIP
        >>> assembled = compiling.compile_rasp_to_model(lib.make_hist(), vocab={"a"}, max_seq_len=5)  # doctest: +SKIP
        >>> built = from_tracr(assembled, name="hist")  # doctest: +SKIP
    """
    check_dtype(dtype)
    if assembled.model_config.layer_norm:
        raise UnsupportedModelError(
            f"the tracr model {name!r} has layer norms, which tracr's compiler never sets. Give the model as "
            "compile_rasp_to_model returns it."
        )
    held = _Assembled.of(assembled)
    # Value -> number of a categorical output; None for a numerical one.
    values = getattr(assembled.output_encoder, "encoding_map", None)
    program = _program(held, values, name)
    head = np.zeros((program.unembed.shape[1], len(held.labels)))
    head[:, held.directions(program.output)] = program.unembed.T
    spec = replace(
        program.spec(len(held.labels), held.config.key_size),
        n_layers=held.config.num_layers,
        n_heads=held.config.num_heads,
        d_vocab=len(head),
        d_vocab_in=len(held.words),
    )
    model = native_model(spec, held.weights | {"head.weight": head}, DTYPES[dtype])
    draw = _draw(held, program, assembled.input_encoder, values is None)
    entry = Entry(what="a program that tracr compiled", program=program, draw=draw, numeric=values is None)
    return CompiledModel(name=name, entry=entry, norm=False, model=model)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Assembled:
    """The parts of an assembled model.

    Attributes:
        labels: Of the directions of the stream, `variable:value`, or `variable` for a number.
        words: The vocabulary, by token.
        config: Tracr's own.
        weights: By the names of the native model, `[out, in]`.
    """

    labels: list[str]
    words: tuple[str, ...]
    config: Any
    weights: Matrices

    @classmethod
    def of(cls, assembled: Any) -> _Assembled:
        given = {
            f"{at}/{key}": np.asarray(v, float) for at, part in assembled.params.items() for key, v in part.items()
        }
        weights = {"tok_embed.weight": given["token_embed/embeddings"], "pos.weight": given["pos_embed/embeddings"]}
        names = {"attn.q": "attn/query", "attn.k": "attn/key", "attn.v": "attn/value", "attn.o": "attn/linear"}
        names |= {"mlp.fc_in": "mlp/linear_1", "mlp.fc_out": "mlp/linear_2"}
        for layer in range(assembled.model_config.num_layers):
            for ours, theirs in names.items():
                weights[f"layers.{layer}.{ours}.weight"] = given[f"transformer/layer_{layer}/{theirs}/w"].T
                weights[f"layers.{layer}.{ours}.bias"] = given[f"transformer/layer_{layer}/{theirs}/b"]
        encoding = assembled.input_encoder.encoding_map
        words = tuple(str(word) for word, _ in sorted(encoding.items(), key=lambda item: item[1]))
        return cls(labels=list(assembled.residual_labels), words=words, config=assembled.model_config, weights=weights)

    @property
    def n_ctx(self) -> int:
        """Longest prompt."""
        return len(self.weights["pos.weight"])

    def directions(self, variable: str) -> list[int]:
        """Directions of a variable in the stream."""
        return [number for number, label in enumerate(self.labels) if _variable(label) == variable]

    def read(self, into: np.ndarray, known: Sequence[str]) -> Matrices:
        """From `[d_model, _]` weights of a reader: what it makes of each variable that it reads."""
        found = {TOKEN: self.weights["tok_embed.weight"] @ into, POSITION: self.weights["pos.weight"] @ into}
        found |= {variable: into[self.directions(variable)] for variable in known}
        return {variable: weight for variable, weight in found.items() if weight.any()}

    def written(self, out: np.ndarray) -> dict[str, list[int]]:
        """From `[_, d_model]` weights of a writer: the variables that it writes, and their directions."""
        names = dict.fromkeys(_variable(self.labels[number]) for number in np.flatnonzero(out.any(0)))
        return {variable: self.directions(variable) for variable in names}


def _variable(label: str) -> str:
    return label.rpartition(":")[0] or label


def _program(held: _Assembled, values: Mapping[Any, int] | None, name: str) -> Program:
    operations, placed = list[Operation](), dict[str, Node]()
    for layer in range(held.config.num_layers):
        known = list(placed)
        attends = [(head, each) for head in range(held.config.num_heads) for each in _attends(held, layer, head, known)]
        placed |= {found.writes: Node(Kind.HEAD, layer, head) for head, found in attends}
        known = list(placed)
        applies = _applies(held, layer, known)
        placed |= {found.writes: Node(Kind.MLP, layer) for found in applies}
        operations += [*(found for _, found in attends), *applies]
        _check_erased(held, layer, known)
    if not operations:
        raise UnsupportedModelError(f"the tracr model {name!r} computes nothing: its output is its input.")
    # Every sub-expression leads to the output, so the output is written last.
    output = operations[-1].writes
    return Program(
        name=name,
        words=held.words,
        n_ctx=held.n_ctx,
        operations=tuple(operations),
        output=output,
        unembed=_unembed(held, output, values, name),
        causal=held.config.causal,
        placed=placed,
    )


def _attends(held: _Assembled, layer: int, head: int, known: Sequence[str]) -> list[Attend]:
    size, at = held.config.key_size, f"layers.{layer}.attn"
    rows = slice(head * size, (head + 1) * size)
    q, k, v = (held.weights[f"{at}.{slot}.weight"][rows].T for slot in "qkv")
    out = held.weights[f"{at}.o.weight"][:, rows].T
    found = []
    for variable, places in held.written(out).items():
        values = held.read(v @ out[:, places], known)
        if len(values) != 1:
            raise UnsupportedModelError(
                f"head a{layer}.h{head} sums {sorted(values)} into {variable!r}; an aggregation sums one variable."
            )
        ((value, through),) = values.items()
        terms = tuple(
            Match(query=query, key=key, weight=of_query @ of_key.T / np.sqrt(size))
            for query, of_query in held.read(q, known).items()
            for key, of_key in held.read(k, known).items()
            if (of_query @ of_key.T).any()
        )
        found.append(Attend(writes=variable, value=value, through=through, score=terms))
    return found


def _applies(held: _Assembled, layer: int, known: Sequence[str]) -> list[Apply]:
    """One for each variable that an MLP writes, of the neurons that write it."""
    at = f"layers.{layer}.mlp"
    into, out = held.weights[f"{at}.fc_in.weight"].T, held.weights[f"{at}.fc_out.weight"].T
    found = []
    for variable, places in held.written(out).items():
        if variable in known:  # erased, once its reader has read it; see `_check_erased`
            continue
        neurons = np.flatnonzero(out[:, places].any(1))
        found.append(
            Apply(
                writes=variable,
                reads=held.read(into[:, neurons], known),
                bias=held.weights[f"{at}.fc_in.bias"][neurons],
                out=out[neurons][:, places],
                shift=held.weights[f"{at}.fc_out.bias"][places],
            )
        )
    return found


def _check_erased(held: _Assembled, layer: int, known: Sequence[str]) -> None:
    """A selector width, counted by a head, is made one-hot and erased by the next MLP; nothing else reads it."""
    out = held.weights[f"layers.{layer}.mlp.fc_out.weight"].T
    for variable in set(held.written(out)) & set(known):
        places = held.directions(variable)
        later = [
            name
            for name, weight in held.weights.items()
            for reader in ("q", "k", "v", "fc_in")
            if name.endswith(f".{reader}.weight") and int(name.split(".")[1]) > layer and weight[:, places].any()
        ]
        if later:
            raise UnsupportedModelError(f"m{layer} writes {variable!r} a second time, and {later[0]!r} reads it on.")


def _unembed(held: _Assembled, output: str, values: Mapping[Any, int] | None, name: str) -> np.ndarray:
    labels = [held.labels[place] for place in held.directions(output)]
    if values is None:
        if len(labels) != 1:
            raise UnsupportedModelError(f"the output {output!r} of the tracr model {name!r} is no number: {labels}.")
        return np.array([[0.5, -0.5]])
    found = np.zeros((len(labels), len(values)))
    for value, number in values.items():
        if f"{output}:{value}" not in labels:
            raise UnsupportedModelError(f"the output {output!r} of the tracr model {name!r} has no value {value!r}.")
        found[labels.index(f"{output}:{value}"), number] = 1
    return found


def _draw(
    held: _Assembled, program: Program, encoder: Any, numeric: bool
) -> Callable[[int, np.random.Generator], Drawn]:
    """Draws random pairs of full length, judged where their outputs differ."""
    n = program.n_ctx - 1
    special = {str(word) for word in (encoder.bos_token, encoder.pad_token)}
    words = [number for number, word in enumerate(held.words) if word not in special]
    bos = held.words.index(str(encoder.bos_token))

    def differ(clean: np.ndarray, corrupt: np.ndarray) -> np.ndarray:
        """By position, whether the two outputs are there and differ."""
        if numeric:
            return np.abs(clean - corrupt)[:, 0] > DIFFERENT
        return (np.minimum(clean.max(1), corrupt.max(1)) > PRESENT) & (clean.argmax(1) != corrupt.argmax(1))

    def draw(number: int, rng: np.random.Generator) -> Drawn:
        for _ in range(TRIES):
            clean, corrupt = ([bos, *map(int, rng.choice(words, n))] for _ in range(2))
            if number % 2:
                place = int(rng.integers(1, n + 1))
                corrupt = [*clean[:place], corrupt[place], *clean[place + 1 :]]
            logits = logits_of(program, run_program(program, np.array([clean, corrupt])))
            at = 1 + np.flatnonzero(differ(*logits)[1:])  # the first position is tracr's own
            if len(at):
                answer_at = int(rng.choice(at))
                less = numeric and logits[0, answer_at, 0] < logits[1, answer_at, 0]
                return Drawn(corrupt, clean, answer_at) if less else Drawn(clean, corrupt, answer_at)
        raise ConfigError(f"no pair of {TRIES} random prompts of {program.name!r} has different outputs.")

    return draw
