"""Figures out of results, never out of models: whatever is drawn can be drawn again from a run folder.

`plot(result)` draws any result.

Heatmaps of sweeps, drawings of circuits, faithfulness curves, attributions, attention patterns. Only this package
imports matplotlib.
"""

from circuitlab import drawing
from circuitlab.viz.attribution import attention_figure as attention_figure
from circuitlab.viz.attribution import bars as bars
from circuitlab.viz.attribution import head_heatmap as head_heatmap
from circuitlab.viz.attribution import lens_figure as lens_figure
from circuitlab.viz.attribution import stream_figure as stream_figure
from circuitlab.viz.circuit import draw_circuit as draw_circuit
from circuitlab.viz.curves import FaithfulnessCurve as FaithfulnessCurve
from circuitlab.viz.curves import faithfulness_figure as faithfulness_figure
from circuitlab.viz.grid import LEFT as LEFT
from circuitlab.viz.grid import SITES as SITES
from circuitlab.viz.grid import LabelledGrid as LabelledGrid
from circuitlab.viz.grid import grid_from_frame as grid_from_frame
from circuitlab.viz.grid import read_sweep as read_sweep
from circuitlab.viz.heatmap import heatmap as heatmap
from circuitlab.viz.looks import DrawnEdge as DrawnEdge
from circuitlab.viz.looks import DrawnNode as DrawnNode
from circuitlab.viz.save import figure_bytes as figure_bytes
from circuitlab.viz.save import save_figure as save_figure
from circuitlab.viz.style import style as style
from circuitlab.viz.text import visible_token as visible_token

plot = drawing.draw
