from reports.analysis import precision
from reports.evidence import Evidence
from reports.figures import Canvas
from reports.load import load, tabulate
from reports.render import build
from reports.sections import SECTIONS, work_precision

FLOW = {"forward": "rk4", "backward": "rk4", "rtol": 1e-5, "atol": 1e-7, "num_states": 50}


def cells(records):
    return precision.cells(tabulate(records))


def test_what_others_were_not_timed_at_is_said(price):
    made = price("maml", 4.0, engine="eager") + price("maml", 2.0, engine="compiled")
    made += price("loop-maml", 6.0) + price("jax-maml", None)
    table = work_precision.pairs_table("", precision.pairs(cells(made)))
    assert table.frame["their time"].tolist() == ["6.00 s", "not measured"]


def test_a_failure_of_theirs_stands_in_its_cell(make, price):
    made = price("maml", 2.0, engine="eager")
    made.append(make("time", "jax-maml", engine="own", status="oom", sweep="work_precision"))
    assert work_precision.pairs_table("", precision.pairs(cells(made))).frame["their time"].tolist() == ["oom"]


def test_the_table_tells_levels_ratios_compilation_and_floor(make, price):
    made = price("maml", 2.0, 3e-3, engine="compiled", more={"compile_seconds": 14.0}) + price("loop-maml", 6.0, 1e-7)
    made.append(make("floor", metrics={"floor_seconds": 0.5}, sweep="work_precision"))  # it knows no compiled engine
    ((panel,),) = precision.panels(cells(made))
    table = work_precision.fastest_table(panel)
    assert table.rows == [
        ["unrolled, 1e-2", "maml", "compiled", "–", "2.00 s", "1.0×", "4.0×", "1.00 MiB", "3.00e-3", "14.0 s"],
        ["unrolled, 1e-2", "loop-maml", "own", "–", "6.00 s", "3.0×", "–", "1.00 MiB", "1.00e-7", "–"],
        ["unrolled, 1e-3 to 1e-4", "loop-maml", "own", "–", "6.00 s", "–", "–", "1.00 MiB", "1.00e-7", "–"],
        ["unrolled, 1e-3 to 1e-4", "maml", "compiled", "–", "not reached", "–", "–", "–", "3.00e-3 at best", "14.0 s"],
    ]
    ((bare,),) = precision.panels(cells(price("loop-maml", 6.0, 1e-7)))
    assert not {"time / floor", "compilation, apart"} & set(work_precision.fastest_table(bare).columns)


def test_findings_are_made_from_the_records(precision_store):
    reached, others = work_precision.findings(cells(precision_store))
    assert reached == (
        "On cosmixture at T = 5, amaml (rk43 forward, rk4 back, accepted states, rtol=1e-4, compiled) reaches an error "
        "of 1e-3 in 107 ms and 1.00 MiB; of other libraries, each held to its own target, diffrax 160 ms (1.5×), "
        "loop-maml 4.00 s (38×)."
    )
    assert others == (
        "On cosmixture at T = 5 the same methods in other hands take this many times as long: loop-maml 20×."
    )


def test_the_finding_is_of_a_sweep_in_which_ours_reaches_the_error(price):
    made = price("amaml", 1.0, 1e-4, engine="eager", options=FLOW | {"inner_steps": 500})
    made += price("amaml", 9.0, 1e-1, engine="eager", sweep="peers", options=FLOW | {"inner_steps": 500})
    (told,) = work_precision.findings(cells(made))
    assert "in 1.00 s and 1.00 MiB." in told


def test_nothing_is_said_or_shown_of_what_was_not_measured(make, price):
    nothing = cells([make()])  # of another sweep
    assert work_precision.findings(nothing) == []
    assert precision.panels(nothing) == []
    assert precision.pairs(nothing).empty
    assert work_precision.findings(cells(price("diffrax", 1.0, 1e-4))) == []


def test_a_figure_is_drawn_for_each_target_that_was_measured(price, precision_store):
    (both,) = precision.panels(cells(precision_store))
    row = precision.of_one_sweep(both)
    first, second = (work_precision.figure(row, "flow", "f") for _ in range(2))
    assert first == second
    assert first.png.startswith(b"\x89PNG")
    ((panel,),) = precision.panels(cells(price("maml", 1.0, 1e-7, engine="eager")))
    assert work_precision.figure([panel], "flow", "f") is None
    assert work_precision.figure([panel], "unrolled", "f") is not None


def test_a_cell_without_time_or_memory_does_not_upset_a_figure(make):
    made = [make("error", metrics={"rel_error_unrolled": 1e-7}, sweep="work_precision")]
    made.append(make("memory", metrics={"peak_live_bytes": 5}, sweep="work_precision"))
    ((panel,),) = precision.panels(cells(made))
    assert work_precision.figure([panel], "unrolled", "f") is not None
    assert work_precision.fastest_table(panel).rows == []


def shown(section):
    """All of a section that reaches the page, in a form that can be compared."""
    tables = [(table.title, table.columns, table.rows, table.left, table.folded) for table in section.tables]
    return section.id, section.title, section.text, tables, section.figures, section.findings


def test_the_other_sections_are_as_they_would_be_alone(everything, price, monkeypatch):
    save = Canvas.savefig  # the PNG of a canvas shows what its SVG shows, and takes longer to write
    monkeypatch.setattr(Canvas, "savefig", lambda *a, **how: save(*a, **how) if how["format"] == "svg" else None)
    alone = [record for record in everything if record.sweep not in ("work_precision", "peers")]
    both = [*everything]
    for k in (10, 20, 50, 100):  # the very cells of the other studies, measured again and later
        options = {"forward": "dopri5", "backward": "rk4", "num_states": k, "rtol": 1e-5, "prox": 0.0}
        both += price("amaml", 9.0, 0.9, engine="eager", options=options, started_at="2027-01-01")
    both += price("maml", 9.0, 0.9, engine="eager", options={"inner_steps": 500}, started_at="2027-01-01")
    of_alone, of_both = Evidence(tabulate(alone)), Evidence(tabulate(both))
    for section in SECTIONS:
        if section is not work_precision.section:
            assert shown(section(of_alone)) == shown(section(of_both))


def test_the_sweeps_alone_make_a_report(tmp_path, store, precision_store):
    page = build(load([store(tmp_path / "s", precision_store)]), tmp_path / "out").read_text()
    assert "Work-precision" in page
    assert 'class="wide"' not in page
    assert "Against the same method in other hands, at other horizons" in page
