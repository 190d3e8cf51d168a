"""Automated circuit discovery in transformer language models.

Everything a user calls is importable from here and loaded when it is first asked for: importing the package loads
neither torch nor transformer_lens.

Example:
    >>> from circuitlab import Edge
    >>> Edge.parse("m0->a3.h2<q>").source.name
    'm0'
"""

from typing import TYPE_CHECKING

from circuitlab.lazy import homes_of, lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from circuitlab.attribution.attention import attention
    from circuitlab.attribution.direct import direct_attribution
    from circuitlab.attribution.lens import lens_tokens, logit_lens
    from circuitlab.attribution.record import top_heads
    from circuitlab.compiled.build import CompiledModel, compile_model, compiled_models
    from circuitlab.compiled.tracr import from_tracr
    from circuitlab.data.batch import PairBatch
    from circuitlab.data.example import Example
    from circuitlab.data.pairs import PairSet, PairSplits
    from circuitlab.data.prompting import Prompting
    from circuitlab.data.published import PublishedCircuit
    from circuitlab.data.registry import load_task
    from circuitlab.data.splits import words_of
    from circuitlab.data.task import Task
    from circuitlab.discovery.behaviour import check_task
    from circuitlab.discovery.scores import load_scores
    from circuitlab.discovery.scoring import score_edges, score_nodes
    from circuitlab.discovery.selection import select
    from circuitlab.discovery.stability import stability
    from circuitlab.errors import (
        CircuitLabError,
        ConfigError,
        FileError,
        FormatError,
        GraphError,
        MetricError,
        MissingFileError,
        ModelError,
        OutputExistsError,
        PairLengthError,
        RunError,
        SpanError,
        TableError,
        TaskError,
        TaskFileError,
        TaskNotDoneError,
        TokenError,
        TooFewPromptsError,
        UnknownNameError,
        UnsupportedModelError,
        WrongTypeError,
    )
    from circuitlab.evaluation.evaluate import evaluate
    from circuitlab.evaluation.hypotheses.battery import test_circuit
    from circuitlab.evaluation.truth import recovery
    from circuitlab.features.load import load_autoencoder
    from circuitlab.graphs.circuit import Circuit, load_circuit
    from circuitlab.graphs.compare import circuit_of_nodes, compare, node_overlap
    from circuitlab.graphs.selection import SelectionRule
    from circuitlab.metrics.base import Metric
    from circuitlab.models.load import load_model
    from circuitlab.parts import Edge, ModelSpec, Node, Reader
    from circuitlab.patching.edges.edges import patch_edges
    from circuitlab.patching.paths.paths import path_patch
    from circuitlab.patching.runs.replacement import Replacement
    from circuitlab.patching.sweeps.sweep import estimate_sweep, sweep
    from circuitlab.predictions.log_probs import text_log_probs
    from circuitlab.predictions.next_token import continue_text, predict
    from circuitlab.references import Reference
    from circuitlab.report.pages import write_report
    from circuitlab.runs.cite import cite
    from circuitlab.runs.load import load_run
    from circuitlab.runs.mib import mib
    from circuitlab.runs.pipeline import discover
    from circuitlab.runs.published import compare_published
    from circuitlab.runs.reproduce import reproduce
    from circuitlab.runs.run import Run

_HOMES = homes_of(__name__)
__all__ = sorted([*_HOMES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
