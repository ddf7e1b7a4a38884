import math

import pandas as pd
import pytest

from reports.analysis import tolerance
from reports.load import tabulate


def row(error, price):
    return {"error": error, "price": price}


def test_between_two_settings_the_price_lies_on_a_line_of_logarithms():
    by_hand = pd.DataFrame([row(1e-4, 400), row(1e-2, 100), row(1e-3, 900)])  # the last is no bargain
    assert tolerance.chosen_price(by_hand, 1e-3) == pytest.approx(200)
    assert tolerance.chosen_price(by_hand, 1e-2) == pytest.approx(100)
    assert tolerance.chosen_price(by_hand, 0.5) == pytest.approx(100)  # nothing is cheaper
    assert math.isnan(tolerance.chosen_price(by_hand, 1e-5))
    assert math.isnan(tolerance.chosen_price(by_hand.iloc[:0], 1e-5))


def made(make, error, price, draws=4, **options):
    options = {"inner_steps": 10, "inner_lr": 0.05, "forward": "rk4", "backward": "rk4", "num_states": 10} | options
    metrics = {"draws": draws, "rel_error": error, "next_rel_error": error, "price": 3 * price, "next_price": price}
    if "grad_rtol" in options:
        metrics |= {"met_draws": draws, "unmet_told_draws": 0}
    samples = {"rel_error": [error] * (draws // 2), "next_rel_error": [error] * (draws // 2)}
    about = {"problem": "networks", "problem_options": {"kind": "mlp"}, "method": "amaml", "options": options}
    return make("tolerance", sweep="tolerance", metrics=metrics, samples=samples, **about)


def test_what_asked_is_held_against_what_did_not(make):
    records = [
        made(make, 1e-2, 100),
        made(make, 1e-4, 400, num_states=40),
        made(make, 1e-3, 300, grad_rtol=1e-2),
        made(make, 1e-9, 900, grad_rtol=1e-4),
    ]
    coarse, fine = tolerance.compared(tolerance.cells(tabulate(records))).itertuples()
    assert (coarse.asked, coarse.met, coarse.updates) == (1e-2, 4, 4)
    assert coarse.chosen == pytest.approx(200)
    assert coarse.first == 900
    assert math.isnan(fine.chosen)


def test_a_setting_that_diverged_somewhere_is_none_to_choose(make):
    broken = made(make, 1e-2, 100)
    broken = broken.model_copy(update={"samples": {"rel_error": [1e-2], "next_rel_error": [1e-2]}})
    assert len(tolerance.cells(tabulate([broken]))) == 0
