from amaml_core.methods.accuracy import RECHECKED
from reports.evidence import Evidence
from reports.load import tabulate
from reports.sections import tolerance


def made(make, error, price, **options):
    options = {"inner_steps": 10, "inner_lr": 0.05, "forward": "rk4", "backward": "rk4", "num_states": 10} | options
    metrics = {"draws": 2, "rel_error": error, "next_rel_error": error, "price": 3 * price, "next_price": price}
    metrics |= {"met_draws": 1, "unmet_told_draws": 1} if "grad_rtol" in options else {}
    about = {"problem": "networks", "problem_options": {"kind": "mlp"}, "method": "amaml", "options": options}
    samples = {"rel_error": [error], "next_rel_error": [error]}
    return make("tolerance", sweep="tolerance", metrics=metrics, samples=samples, **about)


def test_a_row_says_what_was_asked_met_and_paid(make):
    records = [made(make, 1e-2, 100), made(make, 1e-4, 400, num_states=40), made(make, 1e-3, 300, grad_rtol=1e-2)]
    section = tolerance.section(Evidence(tabulate(records)))
    (row,) = section.tables[0].rows
    assert row[2:] == ["0.01", "1 of 2", "1.00e-3", "1.00e-3", "900", "300", "200", "1.5×"]
    (finding,) = section.findings
    assert "is met in 1 of 2 updates" in finding
    assert "1.5×" in finding
    assert [figure.name for figure in section.figures] == ["tolerance"]


def test_without_records_it_is_only_named(make):
    section = tolerance.section(Evidence(tabulate([make()])))
    assert (section.figures, section.findings) == ([], [])
    assert not any(table.rows for table in section.tables)


def test_settings_are_kept_for_as_long_as_the_core_keeps_them():
    assert tolerance.RECHECKED == RECHECKED
