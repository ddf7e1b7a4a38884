"""From results to the page: sections are put together, rendered in memory, then written."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reports import words
from reports.environments import environments
from reports.evidence import Evidence
from reports.figures import Figure
from reports.load import Results
from reports.section import Section
from reports.sections import FOREMOST, SECTIONS


def build(results: Results, out: Path) -> Path:
    """Write the report of ``results`` to the directory ``out`` and return the path of the page.

    Everything is rendered before the first byte is written; each file is replaced as a whole.
    """
    sections, findings = _collected(Evidence(results.frame, results.calibration, results.advice))
    shown = [section for section in sections if section.tables or section.notices]
    counts = results.frame.status.value_counts()
    context = {
        "findings": findings,
        "counts": ", ".join(f"{counts[status]} {status}" for status in sorted(counts.index, key=lambda s: s != "ok")),
        "total": words.plural(len(results.frame), "record"),
        "sweeps": ", ".join(sorted(results.frame.sweep.unique())),
        "environments": environments(results.frame),
        "notes": results.notes,
        "missing": [section for section in sections if not section.tables and section.target],
        "opening": [section for section in shown if section.notices],
        "sections": [section for section in shown if not section.notices],
    }
    drawn = [figure for section in shown for figure in section.figures]
    files = {
        "index.html": _template("report.html.j2", escape=True, **context).encode(),
        "report.md": _template("report.md.j2", escape=False, **context).encode(),
        **{f"figures/{figure.name}.png": figure.png for figure in drawn},
        **{f"figures/{figure.name}.svg": figure.svg for figure in drawn},
    }
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        part = out / f"{name}.part"
        part.write_bytes(content)
        part.replace(out / name)
    return out / "index.html"


def _template(name: str, *, escape: bool, **context: object) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = lambda svg: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    environment.filters["one_line"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    return environment.get_template(name).render(**context)


def _collected(evidence: Evidence) -> tuple[list[Section], list[str]]:
    """The sections in the order of the page, and their findings in the order in which those are told."""
    made = {make: make(evidence) for make in SECTIONS}
    order = sorted(SECTIONS, key=lambda make: FOREMOST.index(make) if make in FOREMOST else len(FOREMOST))
    return _shown(made.values()), [finding for make in order for finding in made[make].findings]


def _shown(sections: Iterable[Section]) -> list[Section]:
    """The sections without empty tables, and a number behind the name of a figure that another has already."""
    times: Counter[str] = Counter()

    def numbered(figure: Figure) -> Figure:
        times[figure.name] += 1
        return replace(figure, name=f"{figure.name}-{times[figure.name]}") if times[figure.name] > 1 else figure

    return [
        replace(
            section,
            tables=[table for table in section.tables if table.rows],
            figures=[numbered(figure) for figure in section.figures],
        )
        for section in sections
    ]
