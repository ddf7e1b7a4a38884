"""The gate's first tier: planted faults are caught by name, clean code passes, no baseline is no pass."""

import json

import pytest

from amaml_core import InputError, inner
from amaml_core.ode import solve
from amaml_core.ode.adjoint import BACKWARD
from amaml_core.ode.scheme import HEUN
from bench.gate import counters
from bench.harness import worker
from bench.records import Record
from bench.spec import expand, load_spec

SMALL = {f"problem_options.{key}": value for key, value in {"shots": 5, "queries": 5, "tasks": 2, "width": 4}.items()}
AMAML = "amaml-K50-rk4-rk4-10"


def take(*names):
    found = []
    for cell in expand(load_spec(counters.SWEEP, SMALL | {"replicates": 1})):
        if not names or counters.case_name(cell) in names:
            answer = worker.run({"cell": cell.model_dump(), "threads": 1})
            del answer["git_revision"]  # which the runner puts into the environment
            for replicate in (0, 1):  # in one process a second measurement would tell nothing
                mine = cell.model_copy(update={"replicate": replicate})
                asked = {"cell_id": mine.cell_id, "cell": mine, "environment": {"counter_key": "here"}}
                found.append(Record(sweep=counters.SWEEP, started_at="", duration_s=0, **asked, **answer))
    return found


@pytest.fixture(scope="module")
def clean():
    """Records of these cases by the code as it is, made once."""
    made = take()
    return lambda *names: [record for record in made if not names or counters.case_name(record.cell) in names]


@pytest.fixture
def judge(clean):
    """Takes the baselines now; the returned call measures again and tells what is not as it was: {(case, metric)}."""

    def against(*names):
        accepted = counters.accept(clean(*names), {}, "as it is")

        def again(laws=()):
            checks = counters.judge(take(*names), accepted, laws)
            return {(check.case, check.metric) for check in checks if check.outcome == "fail"}

        return again

    return against


def test_clean_code_passes_every_law_and_itself(clean):
    records = clean()
    checks = counters.judge(records, counters.accept(records, {}, "as it is"))
    assert {check.outcome for check in checks} == {"pass"}
    assert sum(check.metric == "slope" for check in checks) == len(counters.LAWS)


def test_an_extra_hessian_vector_product_is_caught(judge, monkeypatch):
    again, linearize = judge(AMAML), inner.InnerProblem.linearize

    def wasteful(self, u):
        found = linearize(self, u)
        return inner.Linearization(found.gradient, lambda v: (found.hvp(v), found.hvp(v))[1])

    monkeypatch.setattr(inner.InnerProblem, "linearize", wasteful)
    assert {(AMAML, "hvp_evals"), (AMAML, "flops"), (AMAML, "dispatched_ops")} <= again()


def test_a_second_copy_of_the_trajectory_is_caught(judge, monkeypatch):
    again, fixed_grid, kept = judge(AMAML), solve.fixed_grid, []

    def hoarding(*arguments):
        path = fixed_grid(*arguments)
        kept[:] = [path.states.clone()]
        return path

    monkeypatch.setattr(solve, "fixed_grid", hoarding)
    assert (AMAML, "peak_live_bytes") in again()


def test_a_retained_graph_is_caught(judge, monkeypatch):
    again = judge("fomaml-K50")

    def attached(self, u, *, create_graph=False):
        self.stats["grad_evals"] += 1
        return inner._gradient(self, u if u.requires_grad else u.detach().requires_grad_())[0]

    monkeypatch.setattr(inner.InnerProblem, "gradient", attached)
    assert {("fomaml-K50", "peak_saved_bytes"), ("fomaml-K50", "peak_live_bytes")} <= again()


def test_a_solver_step_too_many_is_caught(judge, monkeypatch):
    again, fixed_grid = judge(AMAML), solve.fixed_grid
    monkeypatch.setattr(
        solve,
        "fixed_grid",
        lambda system, u0, horizon, tableau, count, *rest: fixed_grid(system, u0, horizon, tableau, count + 1, *rest),
    )
    assert {(AMAML, "forward_steps"), (AMAML, "states_stored"), (AMAML, "hvp_evals")} <= again()


def test_the_loss_of_an_order_is_caught_by_the_law_and_by_the_error(judge, monkeypatch):
    again = judge(AMAML, "amaml-K50-rk4-rk4-20")
    monkeypatch.setitem(BACKWARD, "rk4", HEUN)
    law = next(law for law in counters.LAWS if law.name == "order 4 of rk4")
    assert {("order 4 of rk4", "slope"), (AMAML, "rel_error_flow")} <= again([law])


def test_an_error_of_zero_has_no_slope_and_says_so(clean):
    law = next(law for law in counters.LAWS if law.name == "order 4 of rk4")
    exact = [
        record.model_copy(update={"metrics": record.metrics | {law.metric: 0.0}})
        for record in clean(AMAML, "amaml-K50-rk4-rk4-20")
    ]
    (check,) = [check for check in counters.judge(exact, {}, [law]) if check.metric == "slope"]
    assert check.outcome == "fail"
    assert "no slope" in check.text


def test_a_counter_that_disagrees_with_itself_fails_even_where_it_is_better(clean):
    first, second = clean("maml-K25")
    accepted = counters.accept([first, second], {}, "as it is")
    fewer = second.model_copy(update={"metrics": second.metrics | {"flops": second.metrics["flops"] - 1}})
    failed = [check for check in counters.judge([first, fewer], accepted, ()) if check.outcome == "fail"]
    assert [check.metric for check in failed] == ["flops"]
    assert "disagree" in failed[0].text
    with pytest.raises(InputError, match="flops differ between two processes"):
        counters.accept([first, fewer], {}, "no")


def test_better_than_the_baseline_is_told_and_passes(clean):
    records = clean("maml-K25")
    accepted = counters.accept(records, {}, "as it is")
    better = [
        record.model_copy(update={"metrics": record.metrics | {"flops": 1, "rel_error_unrolled": 0.0}})
        for record in records
    ]
    checks = {check.metric: check.outcome for check in counters.judge(better, accepted, ())}
    assert checks.pop("flops") == "better"
    assert set(checks.values()) == {"pass"}  # an error below rounding is no gain


@pytest.mark.parametrize(("factor", "outcome"), [(1.0005, "pass"), (1.002, "fail"), (0.998, "better")])
def test_errors_have_a_margin(clean, factor, outcome):
    records = clean(AMAML)
    accepted = counters.accept(records, {}, "as it is")
    moved = [
        record.model_copy(
            update={"metrics": record.metrics | {"rel_error_flow": record.metrics["rel_error_flow"] * factor}}
        )
        for record in records
    ]
    checks = {check.metric: check.outcome for check in counters.judge(moved, accepted, ())}
    assert checks["rel_error_flow"] == outcome


def test_missing_extra_and_changed_cases_fail_and_an_unknown_key_decides_nothing(clean):
    records = clean("maml-K25")
    accepted = counters.accept(records, {}, "as it is")
    one_more = counters.judge(records, accepted | {"gone": accepted["maml-K25"]}, ())
    assert [check.outcome for check in one_more].count("fail") == 1
    assert [c.outcome for c in counters.judge(records, {}, ())] == ["fail"]
    elsewhere = [record.model_copy(update={"environment": {"counter_key": "elsewhere"}}) for record in records]
    (check,) = counters.judge(elsewhere, accepted, ())
    assert check.outcome == "no baseline"
    assert "elsewhere" in check.text
    changed = accepted["maml-K25"].cell.model_copy(update={"seed": 7})
    (check,) = counters.judge(records, {"maml-K25": accepted["maml-K25"].model_copy(update={"cell": changed})}, ())
    assert check.outcome == "fail"


def test_a_crash_is_told_apart_and_a_single_measurement_is_none(clean):
    first, second = clean("maml-K25")
    accepted = counters.accept([first, second], {}, "as it is")
    crashed = second.model_copy(update={"status": "crashed", "reason": "because", "metrics": {}})
    assert [check.crashed for check in counters.judge([first, crashed], accepted, ())] == [True]
    assert [check.crashed for check in counters.judge([first], accepted, ())] == [True]


def test_a_law_without_two_cases_fails(clean):
    checks = counters.judge(clean("maml-K25"), {}, counters.LAWS)
    assert all(check.outcome == "fail" for check in checks if check.metric == "slope")


def test_accepting_keeps_other_environments_and_margins_set_by_hand(clean, tmp_path):
    records = clean("maml-K25")
    before = counters.accept(records, {}, "first")["maml-K25"]
    wide = {**before.rules, "flops": counters.Rule(better="lower", margin=0.5)}
    before = before.model_copy(update={"rules": wide})
    elsewhere = [record.model_copy(update={"environment": {"counter_key": "elsewhere"}}) for record in records]
    after = counters.accept(elsewhere, {"maml-K25": before}, "second")
    assert {key: kept.reason for key, kept in after["maml-K25"].accepted.items()} == {
        "here": "first",
        "elsewhere": "second",
    }
    assert after["maml-K25"].rules["flops"].margin == 0.5
    (tmp_path / "old.json").write_text("{}")
    counters.write_baselines(after, tmp_path)
    assert counters.read_baselines(tmp_path) == after
    assert counters.diff(after, after) == ""
    assert "-  " not in counters.diff({}, after)


def test_a_broken_baseline_is_refused_by_name(tmp_path):
    (tmp_path / "maml-K25.json").write_text("{")
    with pytest.raises(InputError, match=r"maml-K25\.json is not a baseline"):
        counters.read_baselines(tmp_path)


def test_every_case_has_a_committed_baseline_and_no_other():
    named = counters.cases(expand(load_spec(counters.SWEEP)))
    committed = counters.read_baselines(counters.BASELINES)
    assert set(committed) == set(named)
    assert {name: baseline.cell for name, baseline in committed.items()} == named
    for path in counters.BASELINES.glob("*.json"):
        assert path.read_text() == counters.render(committed[path.stem])
        assert json.loads(path.read_text())["accepted"]
