"""Figures out of results, never out of models: whatever is drawn can be drawn again from a run folder.

`plot(result)` draws any result.

Heatmaps of sweeps, drawings of circuits, faithfulness curves, attributions, attention patterns. Only this package
imports matplotlib.
"""

from circuitlab.drawing import draw as plot
from circuitlab.viz.attribution import attention_figure, bars, head_heatmap, lens_figure, stream_figure
from circuitlab.viz.circuit import draw_circuit
from circuitlab.viz.curves import FaithfulnessCurve, faithfulness_figure
from circuitlab.viz.grid import SITES, LabelledGrid, grid_from_frame, read_sweep
from circuitlab.viz.heatmap import heatmap
from circuitlab.viz.looks import DrawnEdge, DrawnNode
from circuitlab.viz.save import figure_bytes, save_figure
from circuitlab.viz.style import style
from circuitlab.viz.text import visible_token

__all__ = [
    "SITES",
    "DrawnEdge",
    "DrawnNode",
    "FaithfulnessCurve",
    "LabelledGrid",
    "attention_figure",
    "bars",
    "draw_circuit",
    "faithfulness_figure",
    "figure_bytes",
    "grid_from_frame",
    "head_heatmap",
    "heatmap",
    "lens_figure",
    "plot",
    "read_sweep",
    "save_figure",
    "stream_figure",
    "style",
    "visible_token",
]
