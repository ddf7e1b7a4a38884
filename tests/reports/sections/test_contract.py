"""What every section keeps to, whatever a store may hold; a new one is covered by its line in the registry."""

import re
from importlib import import_module
from itertools import pairwise
from pkgutil import iter_modules

import pytest

from bench.records import METRICS
from reports import sections
from reports.evidence import Evidence
from reports.figures import Canvas
from reports.load import Results, tabulate
from reports.render import build
from reports.section import Section
from reports.sections import FOREMOST, SECTIONS

PROBES = ("memory", "time", "error", "counts", "allocator", "floor", "quality", "unheard-of")
NAMES = ("<script>alert(1)</script>", "a|b", "two\nlines", r"$\frac{$", "x" * 3000, "x" * 2999, "", " ", "_", "…é")
TRAINED = ("shots", "queries", "test_steps", "outer_updates", "normaliser")


def changed(record, samples=None, metrics=None, **cell):
    """The record with other values; what is asked differently is another cell."""
    asked = record.cell.model_copy(update=cell)
    answer = {name: value for name, value in (("samples", samples), ("metrics", metrics)) if value is not None}
    return record.model_copy(update={"cell": asked, "cell_id": asked.cell_id, **answer})


def valued(record, value):
    """Every number of the record is this one, but for where along a curve it was taken."""
    along = ("curve_steps", "learning_updates")
    samples = {name: kept if name in along else [value] * len(kept) for name, kept in record.samples.items()}
    return changed(record, samples, dict.fromkeys(record.metrics, value))


def alternating(few, *changes):
    """The first record takes the first change, the second the second, and so on, and again."""
    return [changes[i % len(changes)](record) for i, record in enumerate(few)]


def as_it_is(record):
    return record


def named(few, field):
    return alternating(
        few, *(one for name in NAMES for one in (lambda r, name=name: changed(r, **{field: name}), as_it_is))
    )


def with_options(few):
    hostile = {name: name for name in NAMES}
    placed = dict(zip(("forward", "backward", "variant", "solver", "rtol", "atol"), NAMES, strict=False))
    asked = hostile | {"ode": NAMES[3], "normaliser": NAMES[0]}
    odd = {"forward": 3, "backward": None, "variant": ["a"], "solver": {"a": 1}, "rtol": "small", "atol": None}
    return alternating(
        few,
        as_it_is,
        lambda r: changed(r, options=r.cell.options | hostile | placed, problem_options=r.cell.problem_options | asked),
        lambda r: changed(r, options=r.cell.options | odd),
    )


def with_fewest_options(few):
    least = ("inner_steps", "inner_lr")
    return [changed(r, options={key: r.cell.options[key] for key in least}, problem_options={}) for r in few]


def with_states(few):
    asked = ("accepted", "many", 0, -5, 50)
    return alternating(
        few, *(lambda r, states=states: changed(r, options=r.cell.options | {"num_states": states}) for states in asked)
    )


def with_little(few):
    return alternating(
        few,
        lambda r: changed(r, metrics={}),
        lambda r: changed(r, samples={}),
        lambda r: changed(r, samples={name: [] for name in r.samples}),
    )


def crashed(few):
    lost = {"status": "crashed", "reason": "".join(NAMES), "metrics": {}, "samples": {}, "target": ""}
    return [record.model_copy(update=lost) for record in few]


def elsewhere(few):
    return alternating(
        [record.model_copy(update={"target": "<b>"}) if i % 4 else record for i, record in enumerate(few)],
        lambda r: changed(r, dtype="int8", engine="two\nlines"),
        lambda r: changed(r, device="a|b"),
        lambda r: changed(r, dtype="bfloat16"),
    )


def with_environments(few):
    odd = {"packages": ["<script>"], "memory_bytes": "a|b", "timing_key": ["two\nlines"]}
    return [few[0].model_copy(update={"environment": {}}), few[1].model_copy(update={"environment": odd})]


def odd_trainings(train):
    """Each option of the protocol missing or odd, each kind of samples missing, too short or zero."""
    made = [train(problem, method, [0.1, 0.2]) for problem in ("jester", "x_training") for method in ("amaml", "maml")]
    return [
        *made,
        *(
            changed(record, problem_options=asked)
            for record in made
            for key in TRAINED
            for asked in (
                {name: value for name, value in record.cell.problem_options.items() if name != key},
                record.cell.problem_options | {key: ["odd"]},
            )
        ),
        *(
            changed(record, samples, seed=10 * seed + kind)
            for record in made
            for seed, key in enumerate(record.samples, start=1)
            for kind, samples in enumerate(
                (
                    {name: kept for name, kept in record.samples.items() if name != key},
                    record.samples | {key: record.samples[key][:1]},
                    record.samples | {key: [0.0, 0.0]},
                )
            )
        ),
    ]


CASES = {  # name -> records, made from few and from what makes one record and one training
    "nothing": lambda few, make, train: [],
    **{
        f"one record of {probe}": lambda few, make, train, probe=probe: [
            make(probe, metrics=dict.fromkeys(METRICS, 1.0)) if probe != "quality" else train("jester", "amaml", [0.1])
        ]
        for probe in PROBES
    },
    "names of methods": lambda few, make, train: named(few, "method"),
    "names of problems": lambda few, make, train: named(few, "problem"),
    "options": lambda few, make, train: with_options(few),
    "fewest options": lambda few, make, train: with_fewest_options(few),
    "zero": lambda few, make, train: [valued(record, 0.0) for record in few],
    "negative": lambda few, make, train: [valued(record, -1.0) for record in few],
    "huge": lambda few, make, train: [valued(record, 1e300) for record in few],
    "tiny": lambda few, make, train: [valued(record, 1e-300) for record in few],
    "from tiny to huge": lambda few, make, train: alternating(
        few, *(lambda record, value=value: valued(record, value) for value in (1e-300, 1e300, 0.0, -1.0))
    ),
    "no metrics, no samples, empty ones": lambda few, make, train: with_little(few),
    "states": lambda few, make, train: with_states(few),
    "trainings": lambda few, make, train: odd_trainings(train),
    "crashed": lambda few, make, train: crashed(few),
    "targets and machines": lambda few, make, train: elsewhere(few),
    "environments": lambda few, make, train: with_environments(few),
}


@pytest.fixture(scope="module", params=CASES)
def records(request, few, make, train_record):
    return CASES[request.param](few, make, train_record)


@pytest.fixture(scope="module")
def evidence(records):
    return Evidence(tabulate(records))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__module__.split(".")[-1])
def test_a_section_is_whole(evidence, section):
    found = section(evidence)
    assert isinstance(found, Section)
    for table in found.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert all(isinstance(cell, str) for row in [table.columns, *table.rows] for cell in row)
    for figure in found.figures:
        assert figure.png.startswith(b"\x89PNG")
        assert figure.svg.startswith(b"<?xml")
    assert all(isinstance(finding, str) and finding.strip() for finding in found.findings)


def bars(line):
    return len(re.findall(r"(?<!\\)\|", line))


def test_the_page_is_made_and_nothing_in_it_is_taken_for_markup(records, tmp_path, monkeypatch):
    monkeypatch.setattr(Canvas, "savefig", lambda *_, **__: None)  # most of the time, and the test above has done it
    page = build(Results(records, tabulate(records), []), tmp_path).read_text()
    assert not re.search("<script|<b>", page)
    text = (tmp_path / "report.md").read_text()
    lines = text.splitlines()
    assert all(bars(one) == bars(next_) for one, next_ in pairwise(lines) if one[:1] == next_[:1] == "|")
    findings = text.partition("## Findings\n")[2].partition("## Environment")[0].splitlines()
    assert all(line.startswith(("- ", "Too little")) for line in findings if line)
    shown = re.findall(r"\(figures/(.+)\.png\)", text)
    assert len(set(shown)) == len(shown)
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == set(shown)


def test_sections_have_ids_of_their_own():
    ids = [section(Evidence(tabulate([]))).id for section in SECTIONS]
    assert len(set(ids)) == len(ids)


def test_every_file_with_a_section_is_registered():
    modules = [import_module(f"reports.sections.{found.name}") for found in iter_modules(sections.__path__)]
    assert {module.section for module in modules if hasattr(module, "section")} == set(SECTIONS)
    assert set(FOREMOST) <= set(SECTIONS)


def test_a_section_is_added_by_one_line(make, tmp_path, monkeypatch):
    def added(evidence):
        table = sections.failures.section(evidence).tables[0]
        return Section("added", "One more", "", "Added.", [table], [], [f"{len(evidence.frame)} of all were seen."])

    monkeypatch.setattr("reports.render.SECTIONS", [*SECTIONS, added])
    made = [make(status="crashed"), make("error", metrics={"rel_error_flow": 0.1})]
    made.append(make("error", "reptile", metrics={"rel_error_flow": 0.9}))
    build(Results(made, tabulate(made), []), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.index("## Failures") < text.index("## One more")
    assert text.index("is nearest to that of the flow") < text.index("- 3 of all were seen.") < text.index("## Environ")
