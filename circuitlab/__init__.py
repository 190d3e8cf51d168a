"""Automated circuit discovery in transformer language models.

Everything a user calls is importable from here and loaded when it is first asked for: importing the package loads
neither torch nor transformer_lens.

Example:
    >>> from circuitlab import Edge
    >>> Edge.parse("m0->a3.h2<q>").source.name
    'm0'
"""

from typing import TYPE_CHECKING

from circuitlab.lazy import lazy_names

__version__ = "0.1.0"

# Public name -> the module it lives in. The imports below tell type checkers the same; a test compares the two.
_HOMES = {
    "Circuit": "circuitlab.graphs.circuit",
    "CircuitLabError": "circuitlab.errors",
    "CompiledModel": "circuitlab.compiled.build",
    "ConfigError": "circuitlab.errors",
    "Edge": "circuitlab.parts",
    "Example": "circuitlab.data.example",
    "FileError": "circuitlab.errors",
    "FormatError": "circuitlab.errors",
    "GraphError": "circuitlab.errors",
    "Metric": "circuitlab.metrics.base",
    "MetricError": "circuitlab.errors",
    "MissingFileError": "circuitlab.errors",
    "ModelError": "circuitlab.errors",
    "ModelSpec": "circuitlab.parts",
    "Node": "circuitlab.parts",
    "OutputExistsError": "circuitlab.errors",
    "PairBatch": "circuitlab.data.batch",
    "PairLengthError": "circuitlab.errors",
    "PairSet": "circuitlab.data.pairs",
    "PairSplits": "circuitlab.data.pairs",
    "Reader": "circuitlab.parts",
    "Reference": "circuitlab.references",
    "Replacement": "circuitlab.patching.runs.replacement",
    "Run": "circuitlab.runs.run",
    "RunError": "circuitlab.errors",
    "SelectionRule": "circuitlab.graphs.selection",
    "SpanError": "circuitlab.errors",
    "Task": "circuitlab.data.task",
    "TaskError": "circuitlab.errors",
    "TaskFileError": "circuitlab.errors",
    "TaskNotDoneError": "circuitlab.errors",
    "TokenError": "circuitlab.errors",
    "TooFewPromptsError": "circuitlab.errors",
    "UnknownNameError": "circuitlab.errors",
    "UnsupportedModelError": "circuitlab.errors",
    "WrongTypeError": "circuitlab.errors",
    "attention": "circuitlab.attribution.attention",
    "cite": "circuitlab.runs.cite",
    "compare": "circuitlab.graphs.compare",
    "compile_model": "circuitlab.compiled.build",
    "compiled_models": "circuitlab.compiled.build",
    "continue_text": "circuitlab.predictions.continuation",
    "direct_attribution": "circuitlab.attribution.direct",
    "discover": "circuitlab.runs.pipeline",
    "estimate_sweep": "circuitlab.patching.sweeps.estimate",
    "evaluate": "circuitlab.evaluation.evaluate",
    "from_tracr": "circuitlab.compiled.tracr",
    "lens_tokens": "circuitlab.attribution.lens_tokens",
    "load_autoencoder": "circuitlab.features.load",
    "load_circuit": "circuitlab.graphs.circuit",
    "load_model": "circuitlab.models.load",
    "load_run": "circuitlab.runs.load",
    "load_scores": "circuitlab.discovery.scores",
    "load_task": "circuitlab.data.registry",
    "logit_lens": "circuitlab.attribution.lens",
    "patch_edges": "circuitlab.patching.edges.edges",
    "path_patch": "circuitlab.patching.paths.paths",
    "predict": "circuitlab.predictions.next_token",
    "recovery": "circuitlab.evaluation.truth",
    "reproduce": "circuitlab.runs.reproduce",
    "score_edges": "circuitlab.discovery.scoring",
    "score_nodes": "circuitlab.discovery.scoring",
    "select": "circuitlab.discovery.selection",
    "stability": "circuitlab.discovery.stability",
    "sweep": "circuitlab.patching.sweeps.sweep",
    "test_circuit": "circuitlab.evaluation.hypotheses.battery",
    "text_log_probs": "circuitlab.predictions.log_probs",
    "top_heads": "circuitlab.attribution.record",
    "write_report": "circuitlab.report.page",
}
__all__ = sorted([*_HOMES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from circuitlab.attribution.attention import attention
    from circuitlab.attribution.direct import direct_attribution
    from circuitlab.attribution.lens import logit_lens
    from circuitlab.attribution.lens_tokens import lens_tokens
    from circuitlab.attribution.record import top_heads
    from circuitlab.compiled.build import CompiledModel, compile_model, compiled_models
    from circuitlab.compiled.tracr import from_tracr
    from circuitlab.data.batch import PairBatch
    from circuitlab.data.example import Example
    from circuitlab.data.pairs import PairSet, PairSplits
    from circuitlab.data.registry import load_task
    from circuitlab.data.task import Task
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
    from circuitlab.graphs.compare import compare
    from circuitlab.graphs.selection import SelectionRule
    from circuitlab.metrics.base import Metric
    from circuitlab.models.load import load_model
    from circuitlab.parts import Edge, ModelSpec, Node, Reader
    from circuitlab.patching.edges.edges import patch_edges
    from circuitlab.patching.paths.paths import path_patch
    from circuitlab.patching.runs.replacement import Replacement
    from circuitlab.patching.sweeps.estimate import estimate_sweep
    from circuitlab.patching.sweeps.sweep import sweep
    from circuitlab.predictions.continuation import continue_text
    from circuitlab.predictions.log_probs import text_log_probs
    from circuitlab.predictions.next_token import predict
    from circuitlab.references import Reference
    from circuitlab.report.page import write_report
    from circuitlab.runs.cite import cite
    from circuitlab.runs.load import load_run
    from circuitlab.runs.pipeline import discover
    from circuitlab.runs.reproduce import reproduce
    from circuitlab.runs.run import Run

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
