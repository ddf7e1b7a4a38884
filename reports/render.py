"""From results to the page: sections are put together, rendered in memory, then written."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.gate.calibration import QUIET, Calibration
from reports import figures, findings, precision, summary, tables, training, training_sections, words
from reports.load import Results
from reports.paper import published
from reports.section import Section

PAPER_ODE = "forced_linear"  # the closed form of the paper; the others are ours


def build(results: Results, out: Path) -> Path:
    """Write the report of ``results`` to the directory ``out`` and return the path of the page.

    Everything is rendered before the first byte is written; each file is replaced as a whole.
    """
    sections, told = _sections(results.frame, results.calibration)
    shown = [section for section in sections if section.tables]
    counts = results.frame.status.value_counts()
    context = {
        "findings": told,
        "counts": ", ".join(f"{counts[status]} {status}" for status in sorted(counts.index, key=lambda s: s != "ok")),
        "total": words.plural(len(results.frame), "record"),
        "sweeps": ", ".join(sorted(results.frame.sweep.unique())),
        "environments": tables.environments(results.frame),
        "notes": results.notes,
        "missing": [section for section in sections if not section.tables and section.target],
        "sections": shown,
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


def _sections(frame: pd.DataFrame, calibration: Calibration | None) -> tuple[list[Section], list[str]]:
    apart = precision.cells(frame)
    everything, frame = frame, summary.one_memory(frame[frame.study == ""])
    compared = summary.comparisons(frame)
    laws = {probe: summary.scalings(frame, probe) for probe in ("memory", "time")}
    named = [law.lines for found in laws.values() for law in found] + [found.rows for found in compared]
    look = figures.styles(pair for table in named for pair in zip(table.method, table.label, strict=True))
    fought = training.contests(everything)
    sections = [
        _overview(compared, look),
        *training_sections.sections(fought),
        _precision(apart),
        _closed_form(summary.closed_form_study(frame)),
        _cosmixture(summary.cosmixture_study(frame)),
        _memory(frame, laws["memory"], look),
        _law("time", laws["time"], look),
        *([_gate(calibration)] if calibration else []),
        _failures(everything),
    ]
    told = findings.findings(frame, compared, laws["memory"], laws["time"])
    return sections, findings.training_findings(fought) + findings.precision_findings(apart) + told


def _overview(compared: list[summary.Comparison], look: dict) -> Section:
    # the longest trajectory of each problem is what people come for; the others unfold
    longest = {found.problem_label: found for found in sorted(compared, key=lambda found: found.inner_steps)}
    shown = [tables.overview(found, folded=found is not longest[found.problem_label]) for found in compared]
    drawn = []
    for problem in sorted(longest):
        mine = [found for found in compared if found.problem_label == problem]
        fullest = max(mine, key=lambda found: (_complete(found), found.inner_steps))
        drawn.append(figures.trade_off(fullest, _name("overview", problem), look))
    return Section(
        "overview",
        "Overview",
        "bench",
        "One row a method at one trajectory length. Methods do not share a target: the target column says which "
        "gradient a method estimates, and its relative L2 error is given to the gradient of the flow and to that of "
        "the discrete steps, both in float64. Times are medians with quartiles in brackets. "
        f"{words.MISSING} stands for what was not measured; a status in a cell's place says why there is no number.",
        shown,
        [figure for figure in drawn if figure],
    )


def _precision(cells: pd.DataFrame) -> Section:
    shown, drawn = [], []
    named: Counter[str] = Counter()
    for row in precision.panels(cells):
        first = precision.featured(row)
        others = [panel for panel in row if panel is not first]
        found = [tables.fastest(panel, folded=panel is not first) for panel in [first, *others]]
        shown += [table for table in found if table.rows]
        named[first.problem_label] += 1
        again = named[first.problem_label]
        name = _name("work precision", first.problem_label, *([str(again)] if again > 1 else []))
        mine = precision.of_one_sweep(row)
        drawn += [figures.work_precision(mine, target, f"{name}-{target}") for target in figures.ESTIMATED]
    text = [
        "What a gradient of a given error costs. Each method is held to its own target, the gradient that it "
        "estimates, in float64: a method of the flow to that of the flow, an unrolled one to that of the discrete "
        "steps, of which an exact method misses only its rounding. The tables name for each level of error the fastest "
        "cell of each method and engine; the factor is its time over that of our fastest with the same target and "
        "level. Outside libraries run with an engine of their own. Memory is the allocator's peak."
    ]
    if shown and cells.compile_seconds.notna().any():
        text.append("Compilation comes once, before the first update, and is cached afterwards: no time includes it.")
    if shown and cells.floor_seconds.notna().any():
        text.append("The floor is the time of the update's matrix products and activations alone.")
    against = precision.pairs(cells)
    title, at = "Against the same method in other hands", against.horizon == precision.FEATURED
    others = tables.pairs(f"{title}, at other horizons" if at.any() else title, against[~at], folded=bool(at.any()))
    shown += [tables.pairs(title, against[at])] * bool(at.any()) + [others] * bool(others.rows)
    if shown and cells.method.isin(precision.PEERS).any():
        shown.append(tables.peers("What the names stand for", cells.method))
    return Section(
        "work-precision",
        "Work-precision: gradient error against cost",
        "bench-peers",
        " ".join(text),
        shown,
        [figure for figure in drawn if figure],
    )


def _complete(found: summary.Comparison) -> int:
    return int((found.rows.rel_error_flow.notna() & found.rows.outer_update_seconds.notna()).sum())


def _name(*parts: str) -> str:
    """A file name made of these words."""
    return "-".join("".join(c if c.isalnum() else " " for c in " ".join(parts)).lower().split())


def _closed_form(rows: pd.DataFrame) -> Section:
    shown, drawn = [], []
    for setting, group in sorted(rows.groupby("setting"), key=lambda item: PAPER_ODE not in item[0]):
        options = json.loads(setting)[1]
        ode = options.get("ode", PAPER_ODE)
        paper = published("table4") if ode == PAPER_ODE else {}
        points = summary.error_points(group)
        name = f"{ode} (the ODE of the paper)" if paper else ode
        shown.append(tables.errors(f"{name}: relative error", points, paper))
        if summary.orders(points):
            shown.append(tables.convergence(f"{name}: observed order", points))
        drawn.append(
            figures.errors(
                points,
                paper,
                _name("closed form", ode),
                f"Closed form {name}: relative error against states.",
            )
        )
    return Section(
        "closed-form",
        "Closed-form accuracy (E1)",
        "bench-accuracy",
        "Relative L2 error of dL/dy₀ where it is known exactly: mean ± standard deviation over random y₀. "
        "Published: Li et al. 2023, table 4, in float32. The order is observed between the last two numbers of states "
        "(in brackets) whose errors are above 100 units of rounding; modified Euler and Heun have order 2, Euler 1, "
        "rk4 4. On this ODE the adjoint's error can be worked out by hand for any scheme: the published adjoint column "
        "at T = 1 and 2 is that of the explicit midpoint rule on one interval fewer, not of modified Euler, and at "
        "T = 0.5 that error stands in the column headed autodiff, so that the two seem to be swapped there.",
        shown,
        [figure for figure in drawn if figure],
    )


def _cosmixture(rows: pd.DataFrame) -> Section:
    shown, drawn = [], []
    paper = published("table5")
    for number, (_, group) in enumerate(rows.groupby("setting")):
        label = group.problem_label.iloc[0]
        points = summary.error_points(group)
        in_paper = points.horizon.isin({horizon for horizon, _ in paper["amaml"]})
        for title, part, beside in (
            ("horizons of the paper", points[in_paper], paper),
            ("other horizons", points[~in_paper], {}),
        ):
            if len(part):
                shown.append(tables.errors(f"{label}: relative error, {title}", part, beside))
        shown.append(tables.stability(f"{label}: smallest stable number of states", points))
        name = _name(label, *([str(number + 1)] if number else []))
        drawn.append(figures.errors(points, paper, name, f"{label}: error of A-MAML's gradient against states."))
    return Section(
        "cosmixture",
        "Gradient accuracy on CosMixture (E2)",
        "bench-accuracy",
        "Relative L2 error of A-MAML's meta-gradient to a converged float64 gradient of the flow: mean ± standard "
        "deviation over initialisations. Published: Li et al. 2023, table 5, whose reference is the method itself on "
        "1,000 states. Explicit schemes on few states blow up at long horizons; such cells read diverged. The smallest "
        "stable number of states is the smallest that was fine together with all larger ones that were measured.",
        shown,
        [figure for figure in drawn if figure],
    )


def _law(probe: str, laws: list[summary.Scaling], look: dict) -> Section:
    drawn = [
        figures.scaling(law, probe, _name(probe, *([str(i + 1)] if i else [])), look) for i, law in enumerate(laws)
    ]
    what = {
        "memory": "Peak bytes of tensors above the resting level during one meta-gradient, and the most that autograd "
        "held for its backward passes; where only the allocator was read, its own peak.",
        "time": "Median seconds of one meta-gradient.",
    }
    return Section(
        probe,
        f"{'Memory' if probe == 'memory' else 'Time'} against trajectory length (E3)",
        f"bench-{probe}",
        f"{what[probe]} The slope is that of a least-squares line through the logarithms at "
        f"{summary.FIT_FROM} steps and more: 0 is constant, 1 is linear.",
        [tables.scaling(law, probe) for law in laws],
        [figure for figure in drawn if figure],
    )


def _memory(frame: pd.DataFrame, laws: list[summary.Scaling], look: dict) -> Section:
    section = _law("memory", laws, look)
    readings = summary.readings(frame)
    flagged = tables.disagreements(f"Readings more than {words.share(summary.AGREE)} apart", readings)
    text = f"{section.text} {findings.agreement(readings)}".strip()
    return replace(section, text=text, tables=section.tables + [flagged] * bool(flagged.rows))


def _gate(known: Calibration) -> Section:
    text = (
        "What `amaml-bench gate --against` is worth, on identical code and on planted slowdowns. A run is "
        f"{words.plural(known.blocks, 'block')} of six processes; it fails where the head is slower by more than 5 % "
        f"and a second stage agrees. On {known.timing_key}, {words.plural(len(known.live), 'run')} of identical code "
        f"were made, of which {sum(': FAILED' in run.verdict for run in known.live)} failed. From their blocks "
        f"{known.runs:,} runs were resampled, each from one of them: {known.false_alarms} failed, a rate of false "
        f"alarms below {words.share(known.false_alarm_limit)} (95 %) given these blocks; the first stage alone would "
        f"have failed in {known.suspected}, the control alarmed in {known.control_alarms}. Found: the share of "
        f"{known.planted_runs} resampled runs with this slowdown of one case that failed for it and for nothing else. "
        f"Cases whose blocks spread by more than {words.share(QUIET)} decide too little on that machine. "
        f"Made by `{known.command}` (bench/calibrate.py)."
    )
    return Section("gate", "The gate's own errors", "", text, tables.gate(known), [])


def _failures(frame: pd.DataFrame) -> Section:
    shown = [tables.failures(frame)] if (frame.status != "ok").any() else []
    return Section("failures", "Failures", "", "Every record that is not ok, and why.", shown, [])
