from reports.evidence import Evidence
from reports.load import tabulate
from reports.sections import failures


def test_every_failure_is_listed(make):
    made = [make(seed=1), make(seed=2, status="crashed", reason="signal 9"), make(seed=3, status="timeout")]
    (table,) = failures.section(Evidence(tabulate(made))).tables
    assert sorted(row[-2:] for row in table.rows) == [["crashed", "signal 9"], ["timeout", "no reason given"]]
