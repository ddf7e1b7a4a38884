import pytest

from reports.compare import compare, markdown
from reports.load import InputError, load


@pytest.fixture
def compared(tmp_path, store):
    def run(a, b):
        return compare(load([store(tmp_path / "a", a)]), load([store(tmp_path / "b", b)]))

    return run


def test_shared_cells_are_set_side_by_side(make, compared):
    a = [make(metrics={"peak_live_bytes": 200}), make(seed=1)]
    table = compared(a, [make(metrics={"peak_live_bytes": 300})])
    assert table[["metric", "A", "B", "B/A", "remark"]].to_numpy().tolist() == [
        ["peak_live_bytes", "200", "300", "1.5", ""]
    ]


def test_times_of_two_machines_are_not_compared_but_counts_are(make, compared):
    metrics = {"outer_update_seconds": 1.0, "grad_evals": 5}
    elsewhere = {"timing_key": "another CPU"}
    table = compared([make("time", metrics=metrics)], [make("time", metrics=metrics, environment=elsewhere)])
    rows = table.set_index("metric")
    assert rows["B/A"].to_dict() == {"grad_evals": "1", "outer_update_seconds": ""}
    assert rows.remark["outer_update_seconds"].startswith("not comparable: timing_key is torch")


def test_failures_are_compared_as_words(make, compared):
    table = compared([make(metrics={"peak_live_bytes": 1})], [make(status="oom", reason="too big")])
    assert table.iloc[0].tolist()[2:] == ["status", "ok", "oom", "", "B: too big"]


def test_another_version_of_the_benchmark_is_told(make, compared):
    table = compared([make(metrics={"flops": 1})], [make(metrics={"flops": 2}, version="other")])
    assert table.remark[0] == "the benchmark's code differs"


def test_stores_without_a_shared_cell_are_refused(make, compared):
    with pytest.raises(InputError, match="share no cell"):
        compared([make(seed=1)], [make(seed=2)])


def test_markdown_keeps_one_line_a_row(make, compared):
    text = markdown(compared([make(status="crashed", reason="a|b\nc")], [make()]))
    assert len(text.splitlines()) == 3
    assert "a\\|b c" in text


def test_a_cell_that_two_sweeps_hold_is_compared_once(make, compared):
    made = [make("time", metrics={"grad_evals": 1})]
    made.append(make("time", metrics={"grad_evals": 2}, sweep="peers", started_at="2027"))
    assert compared(made, made).A.tolist() == ["2"]
