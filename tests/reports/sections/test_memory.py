from reports.load import load
from reports.render import build


def readings_of(make, live):
    return [
        make("memory", metrics={"peak_live_bytes": live}),
        make("allocator", metrics={"peak_allocated_bytes": 1000}),
    ]


def test_readings_of_memory_that_agree_are_vouched_for(make, told):
    assert any("1 update; they agree within 5.00 %" in line for line in told(readings_of(make, 1050)))
    assert any("they agree to the byte" in line for line in told(readings_of(make, 1000)))


def test_readings_of_memory_that_disagree_are_mistrusted(make, told):
    assert any(
        "on 1 they are more than 10.0 % apart (at most 50.0 %)" in line for line in told(readings_of(make, 1500))
    )


def test_readings_of_memory_that_disagree_are_flagged(tmp_path, store, make):
    made = [
        make("memory", metrics={"peak_live_bytes": 1500}),
        make("allocator", metrics={"peak_allocated_bytes": 1000}),
    ]
    page = build(load([store(tmp_path / "s", made)]), tmp_path / "out")
    text = (page.parent / "report.md").read_text()
    assert "Readings more than 10.0 % apart" in text
    assert "mistrust those" in text
    fine = build(load([store(tmp_path / "fine", [make("memory", metrics={"peak_live_bytes": 1})])]), tmp_path / "out2")
    assert "Readings more than" not in (fine.parent / "report.md").read_text()
