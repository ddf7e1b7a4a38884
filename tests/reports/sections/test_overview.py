import pytest

from reports.evidence import Evidence
from reports.load import tabulate
from reports.sections import overview


def table(records):
    return overview.section(Evidence(tabulate(records))).tables[0]


@pytest.mark.parametrize("status", ["diverged", "oom", "timeout", "crashed", "skipped"])
def test_a_failure_stands_in_its_cell_with_its_reason(make, status):
    made = [make("memory", metrics={"peak_live_bytes": 2048}), make("time", status=status, reason="because")]
    (row,) = table(made).rows
    assert row[2:4] == ["2.00 KiB", status]
    assert row[-1] == f"time: {status} (because)"


def test_what_did_not_converge_is_told(make):
    made = [make("error", "imaml", metrics={"rel_error_flow": 0.1, "not_converged_tasks": 5})]
    assert table(made).rows[0][-1] == "ok; not converged: 5 tasks"


def test_precisions_in_one_table_are_named(make):
    made = [make("memory", dtype="float32"), make("error", dtype="float64")]
    assert "precision" in table(made).columns
    assert "precision" not in table(made[:1]).columns


def test_no_trade_off_without_both_error_and_cost(make):
    evidence = Evidence(tabulate([make("memory", metrics={"peak_live_bytes": 1.0})]))
    assert overview.section(evidence).figures == []


def test_the_nearest_and_the_farthest_gradient_are_named(make, told):
    made = [make("error", method, metrics={"rel_error_flow": e}) for method, e in (("maml", 0.1), ("reptile", 0.9))]
    (line,) = told(made)
    assert line.index("maml is nearest") < line.index("reptile farthest")


def test_no_finding_without_something_to_compare(make, told):
    assert told([make("error", metrics={"rel_error_flow": 0.1})]) == []
