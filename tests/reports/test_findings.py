from reports.findings import findings
from reports.load import tabulate
from reports.summary import comparisons, scalings


def told(records):
    frame = tabulate(records)
    return findings(frame, comparisons(frame), scalings(frame, "memory"), scalings(frame, "time"))


def costs(make, method, laws, options=None):
    return [
        make(probe, method, options={"inner_steps": n} | (options or {}), metrics={metric: law(n)})
        for n in (20, 500)
        for probe, metric, law in zip(
            ("memory", "time"), ("peak_live_bytes", "outer_update_seconds"), laws, strict=True
        )
    ]


def test_the_adjoint_is_set_against_maml(make):
    made = costs(make, "maml", (lambda n: 2048.0 * n, lambda n: 0.01 * n))
    made += costs(make, "amaml", (lambda n: 10240.0, lambda n: 1.0), {"backward": "euler", "num_states": 50})
    memory, time = told(made)
    assert "amaml (euler, 50 states) uses 1.00 % of that (10.0 KiB)" in memory
    assert "0.00 for amaml (euler, 50 states), 1.00 for maml" in memory
    assert "takes 20.0 % of that (1.00 s)" in time


def test_one_variant_speaks_for_memory_and_time(make):
    made = costs(make, "maml", (lambda n: 1000.0 * n, lambda n: 0.01 * n))
    made += costs(make, "remat-maml", (lambda n: 10.0 * n, lambda n: 0.03 * n), {"segment": "sqrt"})
    made += costs(make, "remat-maml", (lambda n: 90.0 * n, lambda n: 0.02 * n), {"segment": 1})
    assert all("segment=sqrt" in line and "segment=1)" not in line for line in told(made))


def test_no_finding_without_something_to_compare(make):
    assert told([make("error", metrics={"rel_error_flow": 0.1})]) == []


def test_the_nearest_and_the_farthest_gradient_are_named(make):
    made = [make("error", method, metrics={"rel_error_flow": e}) for method, e in (("maml", 0.1), ("reptile", 0.9))]
    (line,) = told(made)
    assert line.index("maml is nearest") < line.index("reptile farthest")


def readings_of(make, live):
    return [
        make("memory", metrics={"peak_live_bytes": live}),
        make("allocator", metrics={"peak_allocated_bytes": 1000}),
    ]


def test_readings_of_memory_that_agree_are_vouched_for(make):
    assert any("1 update; they agree within 5.00 %" in line for line in told(readings_of(make, 1050)))
    assert any("they agree to the byte" in line for line in told(readings_of(make, 1000)))


def test_readings_of_memory_that_disagree_are_flagged(make):
    assert any(
        "on 1 they are more than 10.0 % apart (at most 50.0 %)" in line for line in told(readings_of(make, 1500))
    )
