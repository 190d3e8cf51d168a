"""Tracr's models: their weights in a model that the engine runs, and their true edges from what they hold where.

Tracr compiles a RASP expression into a transformer whose residual stream has a labelled direction for every value of
every sub-expression. Each head holds one aggregation, each MLP one or more maps; the input holds tokens, indices and a
constant. What a head or MLP writes and reads, by label, is how one sub-expression depends on others: it gives a
`Program`, and the program gives the true edges by the same rule as for all compiled models.

Neither tracr nor JAX is imported: an assembled model is read through its attributes. `pip install circuitlab[tracr]`
installs both.

References:
    Lindner et al. 2023, arXiv:2301.05062.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuitlab.arguments import checked
from circuitlab.compiled.build import CompiledModel
from circuitlab.compiled.entry import Drawn, Entry
from circuitlab.compiled.meaning import logits_of, run_program
from circuitlab.compiled.program import POSITION, TOKEN, Apply, Attend, Match, Operation, Program
from circuitlab.errors import ConfigError, UnsupportedModelError
from circuitlab.models.load import DTYPES
from circuitlab.models.modes import in_ordinary_modes
from circuitlab.models.native import NativeShape, native_model
from circuitlab.parts import Kind, Node

# Prompts that are tried for a pair whose outputs differ.
TRIES = 1000
# A value of a one-hot variable, and a difference of a number, that counts.
PRESENT, APART = 0.5, 1e-3

Matrices = dict[str, np.ndarray]


@checked
@in_ordinary_modes
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
    if dtype not in ("float64", "float32"):
        raise ConfigError(f"dtype is {dtype!r}; a compiled model is in 'float64' or 'float32'.")
    if assembled.model_config.layer_norm:
        raise UnsupportedModelError(
            f"the tracr model {name!r} has layer norms, which tracr's compiler never sets. Give the model as "
            "compile_rasp_to_model returns it."
        )
    held = _Held.of(assembled)
    program = _program(held, assembled, name)
    model = native_model(_shape(held, program), held.weights | _head(held, program), name, DTYPES[dtype])
    draw = _draw(held, program, assembled)
    entry = Entry(what="a program that tracr compiled", program=program, draw=draw, numeric=draw.numeric)
    return CompiledModel(name=name, entry=entry, norm=False, model=model)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Held:
    """What an assembled model holds.

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
    def of(cls, assembled: Any) -> _Held:
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


def _values(assembled: Any) -> Mapping[Any, int] | None:
    """Value -> number of a categorical output; None for a numerical one."""
    return getattr(assembled.output_encoder, "encoding_map", None)


def _program(held: _Held, assembled: Any, name: str) -> Program:
    operations, placed = list[Operation](), dict[str, Node]()
    for layer in range(held.config.num_layers):
        known = [operation.writes for operation in operations]
        for head in range(held.config.num_heads):
            for found in _attends(held, layer, head, known):
                operations.append(found)
                placed[found.writes] = Node(Kind.HEAD, layer, head)
        known = [operation.writes for operation in operations]
        for found in _applies(held, layer, known):
            operations.append(found)
            placed[found.writes] = Node(Kind.MLP, layer)
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
        unembed=_unembed(held, output, _values(assembled), name),
        causal=held.config.causal,
        placed=placed,
    )


def _attends(held: _Held, layer: int, head: int, known: Sequence[str]) -> list[Attend]:
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
            Match(query=query, key=key, weight=asked @ told.T / np.sqrt(size))
            for query, asked in held.read(q, known).items()
            for key, told in held.read(k, known).items()
            if (asked @ told.T).any()
        )
        found.append(Attend(writes=variable, value=value, through=through, score=terms))
    return found


def _applies(held: _Held, layer: int, known: Sequence[str]) -> list[Apply]:
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


def _check_erased(held: _Held, layer: int, known: Sequence[str]) -> None:
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


def _unembed(held: _Held, output: str, values: Mapping[Any, int] | None, name: str) -> np.ndarray:
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


def _head(held: _Held, program: Program) -> Matrices:
    weight = np.zeros((program.unembed.shape[1], len(held.labels)))
    weight[:, held.directions(program.output)] = program.unembed.T
    return {"head.weight": weight}


def _shape(held: _Held, program: Program) -> NativeShape:
    return NativeShape(
        n_layers=held.config.num_layers,
        n_heads=held.config.num_heads,
        d_model=len(held.labels),
        d_head=held.config.key_size,
        d_mlp=held.config.mlp_hidden_size,
        d_vocab=len(held.words),
        d_vocab_out=program.unembed.shape[1],
        n_ctx=held.n_ctx,
        causal=program.causal,
    )


@dataclass(frozen=True, slots=True)
class _Draw:
    """Random pairs of full length, judged where their outputs differ; `words` are what prompts are made of."""

    program: Program
    numeric: bool
    bos: int
    words: tuple[int, ...]

    def __call__(self, number: int, rng: np.random.Generator) -> Drawn:
        n = self.program.n_ctx - 1
        for _ in range(TRIES):
            clean, corrupt = ([self.bos, *map(int, rng.choice(self.words, n))] for _ in range(2))
            if number % 2:
                place = int(rng.integers(1, n + 1))
                corrupt = [*clean[:place], corrupt[place], *clean[place + 1 :]]
            logits = logits_of(self.program, run_program(self.program, np.array([clean, corrupt])))
            at = np.flatnonzero(self._differ(*logits))
            if len(at):
                answer_at = int(rng.choice(at))
                less = self.numeric and logits[0, answer_at, 0] < logits[1, answer_at, 0]
                return Drawn(corrupt, clean, answer_at) if less else Drawn(clean, corrupt, answer_at)
        raise ConfigError(f"no pair of {TRIES} random prompts of {self.program.name!r} has different outputs.")

    def _differ(self, clean: np.ndarray, corrupt: np.ndarray) -> np.ndarray:
        """By position after the first, which is tracr's own: whether the two outputs are there and differ."""
        if self.numeric:
            found = np.abs(clean - corrupt)[:, 0] > APART
        else:
            there = np.minimum(clean.max(1), corrupt.max(1)) > PRESENT
            found = there & (clean.argmax(1) != corrupt.argmax(1))
        found[0] = False
        return found


def _draw(held: _Held, program: Program, assembled: Any) -> _Draw:
    encoder = assembled.input_encoder
    special = {str(word) for word in (encoder.bos_token, encoder.pad_token)}
    words = tuple(number for number, word in enumerate(held.words) if word not in special)
    bos = held.words.index(str(encoder.bos_token))
    return _Draw(program=program, numeric=_values(assembled) is None, bos=bos, words=words)
