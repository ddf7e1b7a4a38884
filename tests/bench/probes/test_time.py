from stand_ins import measured


def test_time_keeps_its_raw_samples(make_cell):
    result = measured(make_cell, "time", "fomaml")
    assert len(result.samples["outer_update_seconds"]) >= 3
    assert min(result.samples["outer_update_seconds"]) <= result.metrics["outer_update_seconds"]
    assert result.metrics["peak_rss_bytes"] > 50_000_000  # Python and torch
