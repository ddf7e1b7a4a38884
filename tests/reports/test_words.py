import pytest

from reports import words

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.error(1.234e-4), "1.23e-4"),
        (words.error(1.0e-12, 2.5e-13), "1.00e-12 ± 2.50e-13"),
        (words.error(1e-3, NAN), "1.00e-3"),
        (words.error(0.0), "0"),
        (words.error(NAN), "–"),
        (words.size(512), "512 B"),
        (words.size(3 * 2**20), "3.00 MiB"),
        (words.size(5 * 2**40), "5120 GiB"),
        (words.seconds(0.0123), "12.3 ms"),
        (words.seconds(5e-6), "5.00 µs"),
        (words.seconds(2.0, 1.9, 2.25), "2.00 s (1.90–2.25)"),
        (words.fixed(-0.001), "0.00"),
        (words.share(0.0131), "1.31 %"),
        (words.share(2.5), "250 %"),
        (words.plural(1, "step"), "1 step"),
        (words.plural(2, "step"), "2 steps"),
        (words.count(1234.0), "1,234"),
        (words.times(2.94), "2.9×"),
        (words.times(12.3), "12×"),
        (words.times(0.123), "0.12×"),
        (words.times(NAN), "–"),
        (words.level(1e-3), "1e-3"),
        (words.level(2.5e-4), "2.5e-4"),
        (words.times(0.0), "0×"),
        (words.times(-3.0), "-3.0×"),
        (words.times(INF), "∞"),
        (words.times(1e300), "1.0e300×"),
        (words.size(1e300), "9.31e290 GiB"),
        (words.size(-INF), "-∞"),
        (words.seconds(0.0), "0 µs"),
        (words.seconds(-2.0), "-2.00 s"),
        (words.seconds(1e-300), "1.00e-294 µs"),
        (words.share(NAN), "–"),
        (words.error(1.0, INF), "1.00e0 ± ∞"),
        (words.fixed(1e300), "1.00e300"),
        (words.signed(-1e300, 3), "-1.00e+300"),
        (words.three(5e-10), "5.00e-10"),
    ],
)
def test_words(said, expected):
    assert said == expected
