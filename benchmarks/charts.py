"""Bar and line charts as SVG, drawn by matplotlib.

matplotlib takes half a second to import, so only the functions that draw import it.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as MatplotlibAxis
    from matplotlib.figure import Figure

HIGHLIGHT, GREY, MUTED = "#0a66c2", "#8b949e", "#59636e"
_COLOURS = (HIGHLIGHT, "#b35900", "#7a3fb0", "#1a7f37", "#a40e26", "#57606a")
_WIDTH = 9.0  # inches
_MARKED = 12
"""Up to so many points of a line are marked one by one; more are samples over time."""
_STYLE: dict[Any, Any] = {
    # Text stays text in a sans-serif font of the reader's system, so no font is embedded. The layout uses DejaVu Sans,
    # which comes with matplotlib and is wider than most fonts, so the text fits in theirs.
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    # With a fixed salt the identifiers depend on the content alone: the same data gives the same bytes.
    "svg.hashsalt": "users-api",
    # A white background reads on light and dark pages alike.
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.1,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.axisbelow": True,
    "grid.color": "#d8dee4",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}
_VALUE: dict[str, Any] = {
    "color": HIGHLIGHT,
    "fontsize": 9.5,
    "zorder": 5,
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
}


@dataclass(frozen=True)
class Bar:
    """One bar of a chart."""

    label: str
    value: float
    text: str  # its value, as shown at its end
    is_ours: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis: its label with the unit, its scale, and its ticks where matplotlib is not to choose them.

    `symlog` is logarithmic, but for values next to zero, which it can show.
    """

    label: str
    scale: Literal["linear", "log", "symlog"] = "linear"
    ticks: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """Lines over a common x axis. The first is the highlighted one; `unit` follows the values in the legend."""

    x: Axis
    y: Axis
    lines: Mapping[str, Sequence[tuple[float, float]]]
    unit: str = ""
    title: str = ""


def bar_chart(title: str, note: str, axis: str, bars: Sequence[Bar]) -> str:
    """Return horizontal bars from top to bottom as SVG; `axis` is the label of the values, with their unit."""

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        container = axes.barh(
            range(len(bars)),
            [bar.value for bar in bars],
            color=[HIGHLIGHT if bar.is_ours else GREY for bar in bars],
            height=0.62,
        )
        axes.bar_label(container, [bar.text for bar in bars], padding=5, fontweight="bold")
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars], color="black")
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.14)
        axes.grid(axis="x")
        _label(axes.xaxis, Axis(axis))

    return _render(title, note, 1.5 + 0.45 * len(bars), draw)


def line_chart(title: str, note: str, *panels: Panel) -> str:
    """Return panels of lines, one below the other, as SVG."""

    def draw(figure: "Figure") -> None:
        for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            _draw_panel(axes, panel)

    return _render(title, note, 1.0 + 3.4 * len(panels), draw)


def short(value: float) -> str:
    """Return a number as people write it: 0.4, 12, 9,860, 1.2M."""
    if value >= 1e6:
        return f"{value / 1e6:g}M" if value % 1e5 == 0 else f"{value / 1e6:.1f}M"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    axes.set_title(panel.title)
    axes.set_xscale(panel.x.scale)
    axes.set_yscale(panel.y.scale)
    _label(axes.xaxis, panel.x)
    _label(axes.yaxis, panel.y)
    axes.grid(True)
    is_measured_often = any(len(points) > _MARKED for points in panel.lines.values())
    shown: dict[str, float] = {}
    for number, (name, points) in enumerate(panel.lines.items()):
        drawn = [(x, y) for x, y in sorted(points) if y > 0 or panel.y.scale == "linear"]
        if not drawn:
            continue
        value = median(y for _, y in drawn) if is_measured_often else drawn[-1][1]
        label = f"{name}: {short(value)}{panel.unit}"
        shown[label] = value
        _draw_line(axes, drawn, label, number, is_measured_often)
    if panel.y.scale == "linear":
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.05)
    # Beside the lines and in the order of the values, so that a name stands near its line and never on another.
    handles = sorted(axes.get_legend_handles_labels()[0], key=lambda handle: -shown[str(handle.get_label())])
    title = "median" if is_measured_often else "last value"
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), title=title, alignment="left")


def _draw_line(
    axes: "Axes", points: Sequence[tuple[float, float]], label: str, number: int, is_measured_often: bool
) -> None:
    """Draw one line; the first, `number` 0, is highlighted, and shows its values if there are few."""
    xs, ys = zip(*points, strict=True)
    axes.plot(
        xs,
        ys,
        color=_COLOURS[number % len(_COLOURS)],
        linewidth=1.3 if is_measured_often else 1.6 if number else 2.4,
        marker="" if is_measured_often else "o",
        markersize=5,
        label=label,
        zorder=3 if number else 4,
    )
    if number or is_measured_often:
        return
    for x, y in points:
        axes.annotate(short(y), (x, y), (0, 8), textcoords="offset points", ha="center", **_VALUE)


def _label(axis: "MatplotlibAxis", wanted: Axis) -> None:
    """Label an axis and give it round ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis.set_label_text(wanted.label if wanted.scale == "linear" else f"{wanted.label} (log scale)")
    axis.set_minor_locator(NullLocator())
    if wanted.ticks:
        axis.set_major_locator(FixedLocator(wanted.ticks))
    elif wanted.scale == "log":
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _render(title: str, note: str, height: float, draw: "Callable[[Figure], None]") -> str:
    """Draw on a figure `height` inches high and return it as SVG: the same bytes for the same data."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a reader's own matplotlibrc changes nothing
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(_WIDTH, height))
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=15, fontweight="bold")
        figure.supxlabel(note, x=0.01, horizontalalignment="left", fontsize=10, color=MUTED)
        draw(figure)
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    return output.getvalue()
