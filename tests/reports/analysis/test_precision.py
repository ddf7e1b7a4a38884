import math

import pytest

from reports.analysis import precision
from reports.load import tabulate

FLOW = {"forward": "rk4", "backward": "rk4", "rtol": 1e-5, "atol": 1e-7, "num_states": 50}


def cells(records):
    return precision.cells(tabulate(records))


def test_the_fastest_cell_that_reaches_an_error_is_chosen(price):
    made = []
    for rtol, seconds, error in ((1e-2, 1.0, 2e-2), (1e-3, 2.0, 9e-4), (1e-4, 3.0, 8e-4), (1e-5, 4.0, 1e-6)):
        made += price("amaml", seconds, error, engine="eager", options=FLOW | {"rtol": rtol})
    made += price("amaml", 1.5, 5e-4, engine="compiled", options=FLOW)
    made += price("diffrax", 6.0, 5e-4)
    found = precision.fastest(cells(made), 1e-3)
    assert found.method.tolist() == ["amaml", "amaml", "diffrax"]
    assert found.seconds.tolist() == [1.5, 2.0, 6.0]
    assert found.ratio.tolist() == pytest.approx([1.0, 4 / 3, 4.0])
    assert precision.fastest(cells(made), 1e-5).seconds.tolist() == [4.0]


def test_a_method_is_held_to_its_own_target_and_compared_within_it(price):
    made = price("amaml", 1.0, 1e-4, engine="eager", options=FLOW)
    made += price("maml", 10.0, 1e-7, engine="eager") + price("jax-maml", 30.0, 1e-7)
    found = precision.fastest(cells(made), 1e-3).set_index("method")
    assert found.ratio.to_dict() == {"amaml": 1.0, "maml": 1.0, "jax-maml": 3.0}


def test_without_ours_there_is_no_ratio_and_without_an_error_no_cell(price):
    found = precision.fastest(cells(price("diffrax", 1.0, 1e-4) + price("fomaml", 1.0, engine="eager")), 1e-2)
    assert found.method.tolist() == ["diffrax"]
    assert math.isnan(found.ratio.iloc[0])


def test_the_front_holds_what_no_other_beats():
    costs, errors = [3.0, 1.0, 2.0, 4.0, 2.5], [1e-4, 1e-1, 1e-2, 1e-3, 1e-2]
    assert precision.front(costs, errors) == [(1.0, 1e-1), (2.0, 1e-2), (3.0, 1e-4)]
    assert precision.front(costs, errors, floor=1e-2) == [(1.0, 1e-1), (2.0, 1e-2)]
    assert precision.front([], []) == []


def test_the_allocator_is_preferred_to_the_tracker(make, price):
    made = price("maml", 1.0, 1e-7, engine="eager", size=10)
    made.append(make("memory", metrics={"peak_live_bytes": 20}, sweep="work_precision"))
    made.append(make("memory", "amaml", metrics={"peak_live_bytes": 30}, options=FLOW, sweep="work_precision"))
    assert cells(made).set_index("method")["bytes"].to_dict() == {"maml": 10, "amaml": 30}


def test_a_series_is_a_scheme_under_an_engine_and_its_line_is_moved_along_by_tolerance_or_states(price):
    def of(engine="eager", **options):
        return price("amaml", 1.0, 1e-4, engine=engine, options=FLOW | options)

    made = of() + of(num_states=100) + of(engine="compiled") + of(rtol=1e-3, atol=1e-4)
    made += of(num_states="accepted", rtol=1e-3, atol=1e-5) + of(num_states="accepted") + of(forward="dopri5")
    made += price("maml", 1.0, 1e-7, engine="eager") + price("diffrax", 1.0, 1e-4, options={"solver": "bosh3"})
    found = cells(made)
    ours = found[found.method == "amaml"]
    assert set(found.series) == {
        "amaml (rk4 both ways, eager)", "amaml (rk4 both ways, compiled)", "amaml (dopri5 forward, rk4 back, eager)",
        "maml (eager)", "diffrax (bosh3)",
    }  # fmt: skip
    lines = ours[ours.series == "amaml (rk4 both ways, eager)"].groupby("line").size()
    assert sorted(lines) == [1, 2, 2]
    assert "rk4 both ways, accepted states, rtol=1e-3, atol=1e-5" in set(ours.choices)
    assert "dopri5 forward, rk4 back, 50 states" in set(ours.choices)


def test_a_discrete_adjoint_is_named(price):
    found = cells(price("amaml", 1.0, 1e-4, engine="eager", options=FLOW | {"backward": "discrete"}))
    assert found.series.tolist() == ["amaml (rk4, discrete adjoint, eager)"]


def test_the_same_method_in_other_hands(price):
    made = price("maml", 4.0, engine="eager") + price("maml", 2.0, engine="compiled")
    made += price("loop-maml", 6.0) + price("jax-maml", None) + price("maml", 0.1, options={"inner_steps": 7})
    made += price("loop-fomaml", 1.0)  # of ours nothing
    found = precision.pairs(cells(made)).set_index("peer")
    assert sorted(found.index) == ["jax-maml", "loop-maml"]
    assert found.ratio["loop-maml"] == 3.0
    assert found.engine["loop-maml"] == "compiled"
    assert found.failed["jax-maml"] == "not measured"


def test_pairs_keep_to_one_sweep_and_peers_speaks(price):
    made = price("maml", 2.0, engine="eager", sweep="peers") + price("loop-maml", 6.0, sweep="peers")
    made += price("maml", 1.0, engine="eager", sweep="work_precision")
    assert precision.pairs(cells(made)).ratio.tolist() == [3.0]
    made += price("loop-maml", 9.0, sweep="work_precision")
    assert precision.pairs(cells(made)).ratio.tolist() == [3.0]
    alone = price("maml", 1.0, engine="eager", sweep="work_precision") + price("loop-maml", 6.0, sweep="peers")
    assert precision.pairs(cells(alone)).empty


def test_only_the_variant_that_the_counterpart_is_and_the_same_options_are_paired(price):
    def imaml(method, seconds, **options):
        engine = "own" if method == "loop-imaml" else "eager"
        return price(method, seconds, engine=engine, target="stationary", options={"cg_steps": 5} | options)

    made = imaml("loop-imaml", 6.0) + imaml("imaml", 2.0, variant="paper-gd")
    made += imaml("imaml", 1.0, variant="paper-hf") + imaml("imaml", 0.5, variant="paper-gd", cg_steps=1)
    assert precision.pairs(cells(made)).ratio.tolist() == [3.0]


def test_machines_are_never_compared(make, price):
    made = price("maml", 2.0, engine="eager")
    made += price("loop-maml", 6.0, environment={"timing_key": "another"})
    assert precision.pairs(cells(made)).empty
    assert [len(row) for row in precision.panels(cells(made + price("maml", 2.0, 1e-7, engine="compiled")))] == [1]


def test_a_panel_is_of_one_sweep_and_each_is_good_for_something(price):
    made = price("maml", 1.0, 1e-7, engine="eager", sweep="peers") + price("maml", 2.0, 1e-7, engine="eager")
    made += price("maml", 3.0, 1e-7, engine="eager", sweep="peers", options={"inner_steps": 500})
    made += price("maml", 9.0, None, engine="eager", options={"inner_steps": 500})  # no error: of no use here
    (row,) = precision.panels(cells(made))
    assert [(panel.horizon, panel.sweep, panel.cells.seconds.tolist()) for panel in row] == [
        (1.0, "peers", [1.0]), (1.0, "work_precision", [2.0]), (5.0, "peers", [3.0]),
    ]  # fmt: skip
    assert precision.featured(row) is row[2]
    assert precision.featured(row[:2]) is row[0]
    assert precision.of_one_sweep(row) == [row[1]]
