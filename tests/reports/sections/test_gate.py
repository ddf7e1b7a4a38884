from dataclasses import replace

from reports.load import load
from reports.render import build


def test_the_gates_own_errors_are_told(tmp_path, store, make, calibration):
    results = load([store(tmp_path / "s", [make()])])
    assert "The gate's own errors" not in build(results, tmp_path / "without").read_text()
    page = build(replace(results, calibration=calibration), tmp_path / "with")
    text = (page.parent / "report.md").read_text()
    assert "1 run of identical code were made, of which 0 failed" in text
    assert "2,000 runs were resampled, each from one of them: 0 failed" in text
    assert "below 0.150 % (95 %) given these blocks" in text
    assert "Made by `amaml-bench calibrate a.json`" in text
    assert "| quiet | 1.00 % | 100 % | 99.8 % | 100 % |  |" in text
    assert "| noisy | 6.00 % | 10.0 % | 20.0 % | 60.0 % | insufficient |" in text
    assert "| 2026-01-01T00:00:00+00:00 | 9.5 | abc | none | none | gate --against HEAD: passed (2 pass) |" in text
