from reports.evidence import Evidence
from reports.load import tabulate
from reports.sections import honesty

COUNTED = {"draws": 9, "near_draws": 8, "alarmed_draws": 2, "ok_draws": 6, "missed_draws": 3, "estimated_draws": 4}
COUNTED["kinked_draws"] = 1


def made(make, kind, **more):
    options = {"inner_steps": 10, "inner_lr": 0.05, "forward": "rk4", "backward": "rk4", "num_states": 10}
    about = {"problem": "networks", "problem_options": {"kind": kind}, "method": "amaml", "options": options}
    return make("honesty", sweep="honesty", metrics=COUNTED | {"exceeded_draws": 1} | more, **about)


def test_shares_are_of_what_they_are_shares_of(make):
    section = honesty.section(Evidence(tabulate([made(make, "mlp")])))
    (row,) = section.tables[0].rows
    assert row[1:] == ["9", "66.7% (6 of 9)", "50.0% (3 of 6)", "25.0% (1 of 4)", "25.0% (2 of 8)", "11.1% (1 of 9)"]


def test_smooth_networks_and_others_are_told_apart(make):
    evidence = Evidence(tabulate([made(make, "mlp", missed_draws=0), made(make, "relu")]))
    smooth, kinked = honesty.section(evidence).findings
    assert "9 draws of smooth networks" in smooth
    assert "0.0% (0 of 6)" in smooth
    assert "50.0% (3 of 6)" in kinked


def test_without_records_it_is_only_named(make):
    section = honesty.section(Evidence(tabulate([make()])))
    assert (section.tables, section.findings) == ([], [])


def test_references_that_were_checked_are_told_of(make):
    checks = [
        make("references", sweep="honesty", problem="networks", problem_options={"kind": kind}, metrics=found)
        for kind, found in [
            ("mlp", {"draws": 9, "reference_mismatch": 1e-7}),
            ("conv", {"draws": 8, "reference_mismatch": 1e-5}),
        ]
    ]
    (finding,) = honesty.section(Evidence(tabulate(checks))).findings
    assert "17 draws are at most 1.00e-5" in finding
