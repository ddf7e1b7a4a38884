import pandas as pd
import pytest

from bench.gate.calibration import CALIBRATION
from bench.records import canonical_json
from reports.load import InputError, load, tabulate


def test_reads_a_store_and_directories_of_stores(tmp_path, make, store):
    store(tmp_path / "all" / "a", [make(seed=1)])
    store(tmp_path / "all" / "b", [make(seed=2), make(seed=3)])
    assert len(load([tmp_path / "all"]).frame) == 3
    assert len(load([tmp_path / "all" / "a", tmp_path / "all" / "b"]).frame) == 3


def test_the_same_store_named_twice_counts_once(tmp_path, make, store):
    directory = store(tmp_path / "s", [make(seed=1), make(seed=2)])
    results = load([directory, directory])
    assert len(results.frame) == 2
    assert results.notes == []


@pytest.mark.parametrize("content", [None, "", "not json\n"])
def test_a_directory_without_records_is_named_with_a_remedy(tmp_path, content):
    directory = tmp_path / "empty"
    directory.mkdir()
    if content is not None:
        (directory / "records.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"empty holds no .*make bench"):
        load([directory])


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no directory .*nowhere"):
        load([tmp_path / "nowhere"])


def test_torn_lines_are_reported_and_the_rest_is_kept(tmp_path, make, store):
    directory = store(tmp_path / "s", [make()])
    with (directory / "records.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "cel')
    results = load([directory])
    assert len(results.frame) == 1
    assert "records.jsonl:2" in results.notes[0]


def test_of_two_versions_of_a_cell_the_newest_is_kept_and_told(make, tmp_path, store):
    new = make(version="new", started_at="2026-02-01", metrics={"peak_live_bytes": 2})
    old = make(version="old", started_at="2026-01-01", metrics={"peak_live_bytes": 1})
    results = load([store(tmp_path / "s", [new, old])])
    assert results.frame.peak_live_bytes.tolist() == [2]
    assert "older records left out 1" in results.notes[0]


def test_mixed_environments_are_told(make, tmp_path, store):
    elsewhere = {"counter_key": "torch 2.7.0 | cpu"}
    results = load([store(tmp_path / "s", [make(seed=0), make(seed=1, environment=elsewhere)])])
    assert len(results.frame) == 2
    assert "torch 2.7.0" in results.notes[0]


def test_the_last_row_of_an_identity_counts(make, tmp_path, store):
    rows = [make(status="crashed", reason="killed"), make()]
    assert load([store(tmp_path / "s", rows)]).frame.status.tolist() == ["ok"]


def test_a_table_has_its_columns_and_their_types_whatever_its_rows(make):
    none, some = tabulate([]), tabulate([make(metrics={"unheard_of": 1.0, "flops": 2})])
    assert list(none.columns) == list(some.columns)
    assert none.dtypes.astype(str).tolist() == some.dtypes.astype(str).tolist()
    assert len(none) == 0
    assert (none.inner_steps + none.peak_live_bytes).dtype == float


def test_a_metric_that_is_no_number_was_not_measured(make):
    made = make(metrics={"flops": float("inf"), "grad_evals": float("nan"), "hvp_evals": 1e300})
    frame = tabulate([made])
    assert frame[["flops", "grad_evals"]].isna().all(axis=None)
    assert frame.hvp_evals.tolist() == [1e300]


def test_labels_say_what_distinguishes_a_method(make):
    def labels(*options, method="amaml"):
        return tabulate([make(method=method, options=one) for one in options]).label.tolist()

    assert labels({"backward": "euler", "num_states": 50}) == ["amaml (euler, 50 states)"]
    assert labels({"backward": "euler", "num_states": None}) == ["amaml (euler, a state a step)"]
    assert labels({"backward": "rk4", "num_states": "accepted"}) == ["amaml (rk4, accepted states)"]
    assert labels({"backward": "backsolve", "num_states": None}) == ["amaml (backsolve)"]
    assert labels({"variant": "paper-gd"}, method="imaml") == ["imaml paper-gd"]


def test_only_departures_from_the_usual_options_are_labelled(make):
    made = [
        make(method="remat-maml", options={"segment": s, "inner_steps": n}) for n, s in [(1, 1), (2, 1), (3, "sqrt")]
    ]
    assert tabulate(made).label.tolist() == ["remat-maml", "remat-maml", "remat-maml (segment=sqrt)"]
    assert tabulate(made[1:]).label.tolist() == ["remat-maml (segment=1)", "remat-maml (segment=sqrt)"]


def test_an_option_that_is_named_where_it_was_given_is_missed_where_most_have_it(make):
    given = {"command_buffers": True}
    assert tabulate([make(method="diffrax", options=one) for one in (given, given, {})]).label.tolist() == [
        "diffrax",
        "diffrax",
        "diffrax (no command_buffers)",
    ]
    assert tabulate([make(method="diffrax", options=one) for one in (given, {}, {})]).label.tolist() == [
        "diffrax (command_buffers=true)",
        "diffrax",
        "diffrax",
    ]


def test_states_default_to_the_inner_steps(make):
    made = [
        make(options={"num_states": None}),
        make(options={"num_states": 7}),
        make(options={"num_states": "accepted"}),
    ]
    states = tabulate(made).num_states
    assert states.tolist()[:2] == [100, 7]
    assert pd.isna(states[2])


def test_how_often_a_problem_is_sampled_does_not_make_it_another(make):
    frame = tabulate([make(problem_options={"shots": 5, "samples": n}) for n in (1, 20)])
    assert frame.setting.nunique() == 1
    assert frame.problem_options.tolist()[1] == canonical_json({"shots": 5, "samples": 20})


def test_the_target_is_the_one_that_the_record_tells(make):
    assert tabulate([make(target="flow"), make(target="")]).target.tolist() == ["flow", ""]


def test_methods_with_versions_of_their_own_are_not_mixed(make, tmp_path, store):
    rows = [make(version="a"), make(method="fomaml", version="b"), make("time", version="c")]
    assert load([store(tmp_path / "s", rows)]).notes == []


def test_mixed_versions_are_told_problem_by_problem(make, tmp_path, store):
    rows = [make(version="a"), make(version="b", problem="alpine"), make(version="c", problem="alpine", seed=1)]
    (note,) = load([store(tmp_path / "s", rows)]).notes
    assert "memory on alpine" in note
    assert "b, c" in note


def test_a_sweep_that_is_kept_apart_has_its_own_newest_record_and_its_own_usual_options(make, tmp_path, store):
    def of(sweep, rtol, **rest):
        return make("time", "amaml", options={"rtol": rtol}, sweep=sweep, **rest)

    made = [of("time", 1e-5), of("peers", 1e-5, started_at="2027"), of("peers", 1e-3), of("peers", 1e-3, seed=1)]
    results = load([store(tmp_path / "s", made)])
    assert results.frame.study.tolist() == ["", "peers", "peers", "peers"]
    assert results.frame.label.tolist() == ["amaml", "amaml (rtol=1e-05)", "amaml", "amaml"]
    assert results.notes == []


def test_a_compiled_engine_is_labelled_and_a_foreign_one_is_not(make):
    frame = tabulate([make(engine="compiled"), make("time", "jax-maml", engine="own"), make()])
    assert frame.label.tolist() == ["maml (compiled)", "jax-maml", "maml"]
    assert frame.series.tolist() == ["maml", "jax-maml", "maml"]


def test_a_calibration_among_the_stores_is_read_and_a_broken_one_refused(tmp_path, store, make, calibration):
    store(tmp_path / "memory", [make(metrics={"peak_live_bytes": 1.0})])
    assert load([tmp_path]).calibration is None
    (tmp_path / "gate").mkdir()
    path = tmp_path / "gate" / CALIBRATION
    path.write_text(calibration.model_dump_json())
    assert load([tmp_path]).calibration == calibration
    path.write_text("{}")
    with pytest.raises(InputError, match="is no calibration"):
        load([tmp_path])
