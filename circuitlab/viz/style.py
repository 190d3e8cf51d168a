"""The look of every figure: colours with a meaning, and the settings of matplotlib in force while one is drawn.

Blue means positive, red means negative, in heatmaps, edges and nodes alike; both were chosen to be distinguishable by
colour-blind readers and in grey print (dark is strong, light is weak). Nothing here changes matplotlib's settings for
anybody else: `style()` is a context.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb

INK = "#1d2329"
MUTED = "#67707a"
FAINT = "#c9ced3"
PAPER = "#ffffff"
BAND = "#f5f6f7"
POSITIVE = "#1f63a8"
NEGATIVE = "#bb4427"
UNKNOWN = "#8a9199"
NEUTRAL = "#f6f6f4"
FONT = "DejaVu Sans"

# Same lightness step by step on both arms, so that neither sign looks stronger than the other.
_NEGATIVE_ARM = ("#6d1a17", "#a83524", "#d46a47", "#efaa89", "#fadccb")
_POSITIVE_ARM = ("#cfe1ef", "#92bfdf", "#4a8cc4", "#1f5d9f", "#0d3264")

# Names after the first are what an SVG viewer falls back to where DejaVu is not installed.
_SETTINGS: dict[str, object] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": [FONT, "Verdana", "Arial", "Helvetica"],
    "font.size": 8.0,
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.0,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "legend.borderaxespad": 0.2,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "circuitlab",
}


@contextmanager
def style() -> Iterator[None]:
    """The settings of a figure, on top of matplotlib's own defaults; the caller's come back afterwards.

    Text made inside is taken literally: a `$` in a token starts no formula.
    """
    with matplotlib.style.context(["default", _SETTINGS]):
        yield


def legend_above(axes: Axes) -> None:
    """A legend in one line above the axes, at their left edge."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.01), ncols=3)


def diverging() -> Colormap:
    """Red below, near white in the middle, blue above.

    Returns:
        The colormap.
    """
    return LinearSegmentedColormap.from_list("circuitlab", [*_NEGATIVE_ARM, NEUTRAL, *_POSITIVE_ARM], N=511)


def sequential() -> Colormap:
    """White for nothing, blue for much; no red, since what it shows has no sign.

    Returns:
        The colormap.
    """
    return LinearSegmentedColormap.from_list("circuitlab-sequential", [PAPER, *_POSITIVE_ARM], N=256)


Colour = str | tuple[float, float, float] | tuple[float, float, float, float]


def luminance(colour: Colour) -> float:
    """Relative luminance of a colour, 0 = black, 1 = white (WCAG 2).

    Returns:
        A number from 0 to 1.
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def text_on(colour: Colour) -> str:
    """The text colour, dark or white, that contrasts more with a background.

    Returns:
        The colour.
    """
    background = luminance(colour) + 0.05
    return INK if background / (luminance(INK) + 0.05) >= 1.05 / background else PAPER


def mixed(colour: str, strength: float) -> tuple[float, float, float]:
    """A colour thinned with white; unlike transparency it does not add up where lines overlap.

    Args:
        colour: The full colour.
        strength: 0 = white, 1 = the full colour.

    Returns:
        Red, green and blue, between 0 and 1.
    """
    red, green, blue = (1.0 - strength * (1.0 - channel) for channel in to_rgb(colour))
    return red, green, blue


def sign_colour(value: float) -> str:
    """Blue for positive and zero, red for negative, grey for a value that is not a number.

    Returns:
        The colour.
    """
    if value != value:
        return UNKNOWN
    return NEGATIVE if value < 0 else POSITIVE
