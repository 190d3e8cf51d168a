"""Figures made to fit what they show, and files that come out the same, byte for byte, from the same figure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from circuitlab.errors import ConfigError
from circuitlab.outputs.whole import write_bytes
from circuitlab.viz.style import style

DPI = 160
MARGIN = 2.0  # inches around axes while they are drawn; `fit` leaves what they need
# Pixels an inch where a notebook shows a figure; screens of twice that resolution use the other pixels.
_SHOWN_DPI = 100
# Metadata that writers would otherwise add: the date, their name and version.
_METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
}


class InlineFigure(Figure):
    """A figure that a notebook shows where it is the last value of a cell, with or without `%matplotlib inline`."""

    def save(self, path: str | Path) -> Path:
        """Write the figure as `.png` or `.svg`; see `save_figure`.

        Returns:
            The file.
        """
        return save_figure(self, path)

    def _repr_png_(self) -> bytes:
        return figure_bytes(self, "png")

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """For IPython: the PNG, to be shown at the size in which it was drawn, and the text."""
        width, height = (round(side * _SHOWN_DPI) for side in self.get_size_inches())
        data = {"image/png": self._repr_png_(), "text/plain": repr(self)}
        return data, {"image/png": {"width": width, "height": height}}


def new_figure(width: float = 4.0, height: float = 3.0) -> Figure:
    """An empty figure in inches that belongs to no window and no pyplot state.

    Returns:
        The figure.
    """
    figure = InlineFigure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def canvas(width: float, height: float, label: str) -> Iterator[tuple[Figure, Axes]]:
    """A figure with axes of this size in inches, to be drawn within the block; it is fitted to its contents at the end.

    Args:
        width: Of the axes.
        height: Of the axes.
        label: Name of the axes.

    Yields:
        The figure and its axes, with the settings of `style` in force.
    """
    with style():
        figure = new_figure(width + 2 * MARGIN, height + 2 * MARGIN)
        yield figure, panel(figure, label, MARGIN, MARGIN, width, height)
        fit(figure)


def panel(figure: Figure, label: str, left: float, bottom: float, width: float, height: float) -> Axes:
    """New axes at a place given in inches from the lower left corner.

    Returns:
        The axes.
    """
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), label=label)
    place(figure, axes, left, bottom, width, height)
    return axes


def place(figure: Figure, axes: Axes, left: float, bottom: float, width: float, height: float) -> None:
    """Put axes at a place given in inches from the lower left corner."""
    total_width, total_height = figure.get_size_inches()
    axes.set_position((left / total_width, bottom / total_height, width / total_width, height / total_height))


def extent(axes: Axes) -> Bbox:
    """The pixels that axes take with all their labels, for a figure of `new_figure`.

    Returns:
        The box, in pixels.
    """
    canvas = axes.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    box = axes.get_tightbbox(canvas.get_renderer())
    assert box is not None
    return Bbox(box.get_points())


def fit(figure: Figure, pad: float = 0.12) -> None:
    """Resize a figure to what it shows, so that no label is cut off however it is saved; axes keep their size.

    Args:
        figure: Changed in place.
        pad: White border in inches.
    """
    box = Bbox.union([extent(axes) for axes in figure.axes])
    left, bottom, right, top = (side / figure.dpi for side in box.extents)
    width, height = figure.get_size_inches()
    kept = [(axes, axes.get_position(original=True)) for axes in figure.axes]
    # Whole pixels, so that PNG and SVG agree in size.
    new_width, new_height = (round((side + 2 * pad) * DPI) / DPI for side in (right - left, top - bottom))
    figure.set_size_inches(new_width, new_height)
    for axes, at in kept:
        shifted = (at.x0 * width - left + pad, at.y0 * height - bottom + pad, at.width * width, at.height * height)
        place(figure, axes, *shifted)


def figure_bytes(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """A figure as a PNG (160 dots per inch) or SVG file.

    There is no date and no random identifier in it: the same figure gives the same bytes.

    Returns:
        The content of the file.
    """
    buffer = BytesIO()
    with style():
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=_METADATA[kind])
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG or SVG, by the suffix of the path; under a temporary name first, so never by halves.

    Returns:
        The path written.

    Raises:
        ConfigError: The suffix is neither `.png` nor `.svg`.
    """
    path = Path(path)
    kind = path.suffix[1:]
    if kind not in ("png", "svg"):
        raise ConfigError(f"cannot draw {path.name!r}: figures are written as .png or .svg. Use one of these suffixes.")
    write_bytes(path, figure_bytes(figure, kind), "figure")
    return path
