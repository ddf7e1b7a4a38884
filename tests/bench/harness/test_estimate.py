import pytest

from bench.harness.estimate import START_SECONDS, estimate


def took(make_record, cell, seconds):
    return make_record(cell).model_copy(update={"duration_s": seconds})


def test_a_cell_takes_what_it_took(make_cell, make_record):
    cell = make_cell("maml", inner_steps=10)
    told = estimate([cell], [took(make_record, cell, 3.0), took(make_record, cell, 7.0)])
    assert (told.seconds, told.guessed) == (7.0, 0)


def test_else_what_a_line_through_its_relatives_says(make_cell, make_record):
    records = [took(make_record, make_cell("maml", inner_steps=n), 3 + 0.1 * n) for n in (10, 100, 500)]
    assert estimate([make_cell("maml", inner_steps=1000)], records).seconds == pytest.approx(103, rel=0.01)


def test_the_noise_of_two_short_ones_is_not_blown_up(make_cell, make_record):
    records = [took(make_record, make_cell("maml", inner_steps=n), took_s) for n, took_s in ((1, 2.5), (2, 4.0))]
    assert estimate([make_cell("maml", inner_steps=1000)], records).seconds < 30


def test_no_cell_takes_less_than_its_start(make_cell, make_record):
    records = [took(make_record, make_cell("maml", inner_steps=n), 0.1 * n) for n in (100, 900)]
    assert estimate([make_cell("maml", inner_steps=1)], records).seconds == START_SECONDS


def test_else_a_guess_that_says_so(make_cell, make_record):
    told = estimate([make_cell("maml"), make_cell("amaml")], [took(make_record, make_cell("maml"), 3.0)])
    assert told.guessed == 1


def test_failures_teach_nothing(make_cell, make_record):
    cell = make_cell("maml")
    crashed = make_record(cell, status="crashed").model_copy(update={"duration_s": 999.0})
    assert estimate([cell], [crashed]).guessed == 1
