from reports.analysis.contests import contests
from reports.load import load, tabulate
from reports.paper import published_ratings
from reports.render import build
from reports.sections.budget import within_memory, within_time
from reports.sections.ratings import slips_table
from reports.sections.training import details, findings, standing, verdicts
from reports.sections.variants import variants_table


def test_what_was_trained_on_one_seed_only_is_marked(train_record):
    rows = [train_record("jester", "amaml", [0.1 * s, 0.1 * s + 0.01], seed=s) for s in (1, 2, 3)]
    rows.append(train_record("jester", "maml", [0.11, 0.12], seed=1))
    rows += [train_record("jester", "fomaml", [0.12 * s, 0.12 * s + 0.01], seed=s) for s in (1, 2, 3)]
    cell = standing("", contests(tabulate(rows))).frame.set_index("method").loc["maml (all steps)"].iloc[0]
    assert cell.endswith("(seed 1 only)")


def test_who_would_be_first_had_each_stopped_in_time_is_told(train_record):
    ours, theirs = train_record("jester", "amaml", [0.3, 0.3]), train_record("jester", "fomaml", [0.2, 0.2])
    ours.samples["learning_nrmse"] = [0.4, 0.2, 0.1, 0.3]
    theirs.samples["learning_nrmse"] = [0.4, 0.3, 0.25, 0.2]
    (told,) = findings(contests(tabulate([ours, theirs])))
    assert "in 0 of 1 settings" in told
    assert told.endswith("Had each training stopped at its best look at the test tasks: in 1.")


def test_maml_on_all_steps_is_told_beside_ours(train_record):
    rows = [train_record("jester", "amaml", [0.2, 0.2], shots=shots, seconds=100, size=2**20) for shots in (10, 20)] + [
        train_record("jester", "maml", [0.2 + gap, 0.2 + gap], shots=shots, seconds=50, size=2**23)
        for shots, gap in ((10, 0.001), (20, -0.002))
    ]
    told = findings(contests(tabulate(rows)))
    assert told[-1] == (
        "MAML on all steps (train_ratings): its error is -0.0020 to +0.0010 from A-MAML's, over 2 settings, in 0.50× "
        "its time and 8.00 MiB for an update."
    )


def test_a_training_without_finite_looks_does_not_break_the_page(train_record, tmp_path, store):
    record = train_record("jester", "amaml", [0.1, 0.2])
    for name in ("learning_nrmse", "curve_nrmse"):
        del record.samples[name]
    page = build(load([store(tmp_path / "s", [record, train_record("jester", "fomaml", [0.1, 0.2])])]), tmp_path / "o")
    assert "jester" in page.read_text()


def test_tables_say_all_of_it(fought, films):
    text = standing("", [films], published_ratings()).frame.set_index("method")
    assert text.loc["amaml", "movielens_100k 10shot-15val, published"] == "0.053"
    assert text.loc["amaml", "movielens_100k 10shot-15val"].startswith(f"{films.runs['amaml'].mean([1, 2]):.3f} ± ")
    assert text.loc["reptile", "movielens_100k 10shot-15val"] == "diverged"
    assert details(films).frame.method[0] == "amaml"
    assert verdicts("", [films, fought["cosmixture_training", ""]]).frame["A-MAML lowest"].tolist() == ["yes", "no"]
    assert within_time([films]).frame.iloc[0, 1].startswith("maml (1/10 of the steps)")
    assert within_memory([films]).frame.iloc[-1, 1].startswith("amaml")
    assert "held-out RMSE / range" in slips_table("", [films], published_ratings()).frame.iloc[:, 0].tolist()
    assert variants_table("", [fought["movielens_100k", "outer_lr=0.01"]]).frame.setting[0].endswith("outer_lr=0.01")


def test_the_page_holds_figures_and_verdict(tmp_path, store, training_store):
    page = build(load([store(tmp_path / "s", training_store)]), tmp_path / "out").read_text()
    for name in ("training-regression", "training-ratings", "training-ratings-learning"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 10_000
    assert "is the lowest of the paper&#39;s methods in 1 of 1 settings" in page
    assert "Which initialisation under which budget" in page
