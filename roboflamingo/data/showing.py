"""Facts of a data set as text and as a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from jinja2 import Environment
from PIL import Image

from roboflamingo.data.inspecting import Facts

BINS = 24
BARS = " ▁▂▃▄▅▆▇█"
LISTED = 10
"""Problems that are told one by one."""


def rows_of_text(facts: Facts) -> Iterator[tuple[str, str]]:
    """Label and text of every line."""
    spec = facts.spec
    yield facts.title, f"{facts.kind}: {facts.frames} frames in {facts.episodes} episodes, {spec.rate_hz:g} Hz"
    cameras = (f"{name} {height} x {width}" for name, (height, width) in spec.cameras.items())
    yield "  cameras", ", ".join(cameras) or "none"
    yield "  state", ", ".join(f"{name} ({size})" for name, size in spec.state.items()) or "none"
    if spec.privileged:
        yield "  privileged", ", ".join(f"{name} ({size})" for name, size in spec.privileged.items())
    yield "  actions", ", ".join(f"{part.name} ({part.kind}, {part.size})" for part in spec.actions.parts)
    yield from _annotations(facts)
    yield "  missing", _listed(facts.missing) if facts.missing else "no frame"
    share = "all" if facts.looked == facts.frames else f"{facts.looked} of {facts.frames}"
    yield "  damaged", f"{_listed(facts.damaged) if facts.damaged else 'none'}; {share} frames read"
    for place, label in enumerate(action_labels(facts)):
        counts, low, high = histogram(facts.actions[:, place])
        yield f"  {label}", f"{low:8.3f} {_bars(counts)} {high:.3f}"


def _annotations(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.unannotated:
        yield "  segments", f"none: {facts.unannotated}"
        return
    lengths = np.array(facts.lengths or [0])
    spread = f"{lengths.min()} to {lengths.max()} frames, {np.median(lengths):g} in the middle"
    yield "  segments", f"{len(facts.lengths)} of {len(facts.tasks)} tasks, {spread}; {facts.windows} windows"
    if facts.captions:
        yield "  captions", str(facts.captions)
    yield "  sentences", f"{len(facts.sentences)}, as: {'; '.join(list(facts.sentences)[:3])}"
    for task, count in sorted(facts.tasks.items()):
        yield f"    {task or '(no task)'}", str(count)


def action_labels(facts: Facts) -> list[str]:
    """A name for every number of an action."""
    labels = []
    for part in facts.spec.actions.parts:
        units = part.units or ("",) * part.size
        places = [f"{part.name}[{i}]" if part.size > 1 else part.name for i in range(part.size)]
        labels += [f"{place} ({unit})" if unit else place for place, unit in zip(places, units, strict=True)]
    return labels


def histogram(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """How many of the values (n,) lie in each of `BINS` equal parts of their range, and that range."""
    if not len(values):
        return np.zeros(BINS, np.int64), 0.0, 0.0
    counts, edges = np.histogram(values.astype(np.float64), BINS)
    return counts, float(edges[0]), float(edges[-1])


def _bars(counts: Sequence[int] | np.ndarray) -> str:
    most = max(int(max(counts)), 1)
    return "".join(BARS[-(-int(count) * (len(BARS) - 1) // most)] for count in counts)


def _listed(problems: Sequence[str]) -> str:
    more = f", and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    return f"{len(problems)}: {', '.join(problems[:LISTED])}{more}"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td { padding: .1rem .8rem .1rem 0; vertical-align: top; }
td:first-child { white-space: pre; color: #555; } img { image-rendering: auto; height: 120px; margin: 2px; }
.wide { width: 100%; height: auto; } .bad { color: #a00; }
</style></head><body><h1>{{ title }}</h1>
{% for split in splits %}<h2>{{ split.title }}</h2>
{% for name, pictures in split.strip.items() %}<div title="{{ name }}">{% for picture in pictures %}<img
 alt="{{ name }}" src="data:image/png;base64,{{ picture }}">{% endfor %}</div>{% endfor %}
<p>{{ split.shown }}</p>
<table>{% for label, text in split.rows %}<tr><td>{{ label }}</td><td>{{ text }}</td></tr>{% endfor %}</table>
<h3>Actions</h3><img class="wide" alt="histograms of the actions" src="data:image/png;base64,{{ split.actions }}">
{% if split.problems %}<h3 class="bad">Missing and damaged frames</h3><ul>{% for problem in split.problems %}
<li class="bad">{{ problem }}</li>{% endfor %}</ul>{% endif %}
{% endfor %}</body></html>
"""


def page(title: str, facts: Sequence[Facts]) -> str:
    """A page that stands alone: pictures, counts, histograms, every problem."""
    splits = [
        {
            "title": split.title,
            "strip": {name: [_png(image) for image in images] for name, images in split.strip.items()},
            "shown": split.shown,
            "rows": [row for row in rows_of_text(split) if not any(bar in row[1] for bar in BARS[1:])],
            "actions": _histograms(split),
            "problems": [*split.missing, *split.damaged],
        }
        for split in facts
    ]
    return Environment(autoescape=True).from_string(PAGE).render(title=title, splits=splits)


def _png(image: np.ndarray) -> str:
    held = io.BytesIO()
    Image.fromarray(image).save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


def _histograms(facts: Facts) -> str:
    from matplotlib.figure import Figure

    labels = action_labels(facts)
    columns = min(4, len(labels))
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(3 * columns, 1.8 * rows), layout="constrained")
    for place, label in enumerate(labels):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.hist(facts.actions[:, place].astype(np.float64), BINS, color="#4477aa")
        axes.set_title(label, fontsize=9)
        axes.tick_params(labelsize=7)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=90)
    return base64.b64encode(held.getvalue()).decode()
