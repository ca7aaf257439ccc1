"""What all pictures share: figures without pyplot, PNG bytes, colours and shapes that can be told apart."""

import io
from typing import Any

from had.console import printable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Colours that stay apart for colour-blind readers (Okabe and Ito)."""
# One more than there are colours: the pairs of both repeat only after 56.
_SHAPES = ("o", "^", "s", "D", "v", "P", "X", "<")


def colour(number: int) -> str:
    """The colour of the series of this number, from 0; from the eighth on they return."""
    return COLOURS[number % len(COLOURS)]


def shape(number: int) -> str:
    """Matplotlib's marker for the series of this number; `colour` and shape together differ up to 56 series."""
    return _SHAPES[number % len(_SHAPES)]


def as_written(name: str) -> str:
    """A name from a file as matplotlib shows it unchanged: no formula between dollar signs, no hidden legend entry."""
    return (" " if name.startswith("_") else "") + printable(name).replace("$", r"\$")


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of this size in inches.

    It is made without pyplot, so that nobody's backend or open figures are touched, and matplotlib is imported only
    here, because most commands draw nothing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any, dpi: int = 130) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
