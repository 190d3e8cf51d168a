"""Figures out of results, never out of models: whatever is drawn can be drawn again from a run folder.

Heatmaps of sweeps, drawings of circuits, faithfulness curves. Only this package imports matplotlib.
"""

from circuitlab.viz.circuit import DrawnEdge, DrawnNode, draw_circuit, draw_comparison, draw_parts, draw_stability
from circuitlab.viz.curves import FaithfulnessCurve, faithfulness_figure
from circuitlab.viz.grid import SITES, LabelledGrid, grid_from_frame, read_sweep
from circuitlab.viz.heatmap import heatmap
from circuitlab.viz.outliers import outlier_figure
from circuitlab.viz.prompt_search import prompt_search_figure
from circuitlab.viz.save import figure_bytes, save_figure
from circuitlab.viz.simplification import simplification_figure
from circuitlab.viz.style import style
from circuitlab.viz.text import visible_token

__all__ = [
    "SITES",
    "DrawnEdge",
    "DrawnNode",
    "FaithfulnessCurve",
    "LabelledGrid",
    "draw_circuit",
    "draw_comparison",
    "draw_parts",
    "draw_stability",
    "faithfulness_figure",
    "figure_bytes",
    "grid_from_frame",
    "heatmap",
    "outlier_figure",
    "prompt_search_figure",
    "read_sweep",
    "save_figure",
    "simplification_figure",
    "style",
    "visible_token",
]
