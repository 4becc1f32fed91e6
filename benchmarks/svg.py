"""Charts as SVG, written by hand: a background of their own, so that they read on light and dark pages alike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

_FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"
_BACKGROUND, _TEXT, _MUTED, _GRID = "#ffffff", "#1f2328", "#59636e", "#d8dee4"
HIGHLIGHT = "#0a66c2"
_OTHERS = ("#8b949e", "#b35900", "#7a3fb0", "#1a7f37", "#a40e26", "#57606a", "#9a6700")
WIDTH = 900


@dataclass(frozen=True)
class Bar:
    """One bar of a chart, with what stands at its end."""

    label: str
    value: float
    note: str
    is_ours: bool = False


def bar_chart(title: str, subtitle: str, bars: Sequence[Bar]) -> str:
    """Return horizontal bars, in the order given, each with its value."""
    left, top, step = 260, 96, 46
    height = top + step * len(bars) + 24
    longest = max((bar.value for bar in bars), default=0) or 1
    parts = _head(title, subtitle, height)
    for number, bar in enumerate(bars):
        y = top + step * number
        length = max(2.0, (WIDTH - left - 190) * bar.value / longest)
        weight = "600" if bar.is_ours else "400"
        fill = HIGHLIGHT if bar.is_ours else _OTHERS[0]
        parts.append(_text(left - 12, y + 21, bar.label, size=17, anchor="end", weight=weight))
        parts.append(f"<rect x='{left}' y='{y}' width='{length:.1f}' height='30' rx='3' fill='{fill}'/>")
        parts.append(_text(left + length + 10, y + 21, bar.note, size=17, weight=weight))
    return _close(parts)


def line_chart(
    title: str, subtitle: str, x_title: str, lines: Mapping[str, Sequence[tuple[float, float]]],
    ours: Sequence[str] = (), *, is_log: bool = True, unit: str = "",
) -> str:  # fmt: skip
    """Return lines over the same places of x, evenly spaced; each line carries its name and its last value.

    `is_log` draws the values, which must be above zero then, by their logarithm.
    """
    places = sorted({x for points in lines.values() for x, _ in points})
    values = [y for points in lines.values() for _, y in points if y > 0 or not is_log]
    left, right, top, bottom = 90, 290, 100, 470
    low, high, ticks = _scale(values, is_log)

    def at_x(x: float) -> float:
        return left + (WIDTH - left - right) * places.index(x) / max(len(places) - 1, 1)

    def at_y(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if is_log else (y - low) / (high - low)
        return bottom - (bottom - top) * share

    parts = _head(title, subtitle, 540)
    for tick in ticks:
        y = at_y(tick)
        parts.append(f"<line x1='{left}' x2='{WIDTH - right}' y1='{y:.1f}' y2='{y:.1f}' stroke='{_GRID}'/>")
        parts.append(_text(left - 10, y + 5, short(tick), size=15, anchor="end", fill=_MUTED))
    for place in places[:: -(-len(places) // 10)]:  # ten at most, so that they do not run into each other
        parts.append(_text(at_x(place), bottom + 26, short(place), size=15, anchor="middle", fill=_MUTED))
    parts.append(_text((left + WIDTH - right) / 2, bottom + 54, x_title, size=16, anchor="middle"))
    colours = iter(_OTHERS[1:] * (len(lines) // 6 + 1))
    labels: list[tuple[float, str, str, str]] = []
    for name, points in lines.items():
        drawn = [(x, y) for x, y in sorted(points) if y > 0 or not is_log]
        if not drawn:
            continue
        colour, stroke = (HIGHLIGHT, 4) if name in ours[:1] else (next(colours), 2.5)
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in drawn)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{stroke}'/>")
        if len(drawn) <= 10:
            parts += [f"<circle cx='{at_x(x):.1f}' cy='{at_y(y):.1f}' r='4' fill='{colour}'/>" for x, y in drawn]
        weight = "600" if name in ours else "400"
        labels.append((at_y(drawn[-1][1]), f"{name}: {short(drawn[-1][1])}{unit}", colour, weight))
    for y, text, colour, weight in _spread(labels):
        parts.append(_text(WIDTH - right + 14, y + 5, text, size=15, fill=colour, weight=weight))
    return _close(parts)


def stack(charts: Sequence[str]) -> str:
    """Return charts below each other, as one picture."""
    heights = [int(chart.partition(f"viewBox='0 0 {WIDTH} ")[2].partition("'")[0]) for chart in charts]
    total = sum(heights)
    parts = [f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {total}' width='{WIDTH}' height='{total}'>"]
    parts += [chart.replace("<svg ", f"<svg y='{sum(heights[:n])}' ", 1).rstrip() for n, chart in enumerate(charts)]
    return _close(parts)


def short(value: float) -> str:
    """Return a number as people say it: 0.4, 12, 9,860, 1.2M."""
    if value >= 1e6:
        return f"{value / 1e6:g}M" if value % 1e5 == 0 else f"{value / 1e6:.1f}M"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _scale(values: Sequence[float], is_log: bool) -> tuple[float, float, list[float]]:
    top = max(values, default=1.0) or 1.0
    if is_log:
        low = 10 ** math.floor(math.log10(min(values, default=1.0)))
        high = 10 ** math.ceil(math.log10(top) + 1e-9)
        high = high if high > low else low * 10
        return low, high, [low * 10**n for n in range(round(math.log10(high / low)) + 1)]
    step = 10 ** math.floor(math.log10(top))
    step = next(step * factor for factor in (0.2, 0.5, 1, 2) if top / (step * factor) <= 6)
    count = math.ceil(top / step)
    return 0.0, step * count, [step * n for n in range(count + 1)]


def _spread(labels: list[tuple[float, str, str, str]], gap: float = 21) -> list[tuple[float, str, str, str]]:
    # Labels of lines that end close together move apart, downwards first, then back up from the lower edge.
    ordered = sorted(labels)
    places: list[float] = []
    for y, *_ in ordered:
        places.append(max(y, places[-1] + gap) if places else y)
    limit = 480.0
    for number in reversed(range(len(places))):
        places[number] = min(places[number], limit)
        limit = places[number] - gap
    return [(place, *label[1:]) for place, label in zip(places, ordered, strict=True)]


def _head(title: str, subtitle: str, height: float) -> list[str]:
    return [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}' "
        f"role='img' aria-label='{escape(title)}' {_FONT}>",
        f"<rect width='{WIDTH}' height='{height}' rx='8' fill='{_BACKGROUND}'/>",
        _text(24, 40, title, size=24, weight="700"),
        _text(24, 68, subtitle, size=16, fill=_MUTED),
    ]


def _text(
    x: float, y: float, text: str, *, size: int, anchor: str = "start", weight: str = "400", fill: str = _TEXT
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='{anchor}' font-weight='{weight}' "
        f"fill='{fill}'>{escape(text)}</text>"
    )


def _close(parts: list[str]) -> str:
    return "\n".join([*parts, "</svg>"]) + "\n"
