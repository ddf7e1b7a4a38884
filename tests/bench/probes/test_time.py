from stand_ins import measured


def test_time_keeps_its_raw_samples(make_cell, device):
    result = measured(make_cell, "time", "fomaml")
    assert len(result.samples["outer_update_seconds"]) >= 3
    assert min(result.samples["outer_update_seconds"]) <= result.metrics["outer_update_seconds"]
    if device == "cpu":  # elsewhere a process has measured other cells before
        assert result.metrics["peak_rss_bytes"] > 50_000_000  # Python and torch
    else:
        assert "peak_rss_bytes" not in result.metrics
