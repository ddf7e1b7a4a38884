import numpy as np
import pytest
import torch

import amaml_core as am
from bench.problems import make_problem

SMALL = {"shots": 6, "queries": 8, "min_ratings": 20, "items": 30, "tasks": 3, "test_tasks": 10, "test_steps": 5}


def ratings_problem(**options):
    return make_problem("movielens_100k", SMALL | options)


def by_user(table):
    found = {}
    for user, item, rating in zip(*table, strict=True):
        found.setdefault(int(user), {})[int(item)] = rating
    return found


def most_rated(table, count):
    """The items in order of how often they were rated, ties in their own order."""
    items, times = np.unique(table[1], return_counts=True)
    return [item for _, item in sorted(zip(-times, items, strict=True))][:count]


def read_back(x, y):
    """One-hot items ``[n, items]`` and ratings ``[n, 1]`` as {column: rating}."""
    return {int(one.argmax()): float(r) for one, r in zip(x, y.squeeze(-1), strict=True)}


def owner(users, found):
    """The user whose ratings these are."""
    (user,) = [u for u, rated in users.items() if all(rated.get(item) == rating for item, rating in found.items())]
    return user


def test_a_training_task_is_a_users_own_ratings(ratings):
    arena, columns, users = ratings_problem().arena(1), most_rated(ratings, 30), by_user(ratings)
    for update in range(5):
        tasks = arena.batch(update)
        assert (tasks.support_x.shape, tasks.query_y.shape) == ((3, 6, 30), (3, 8, 1))
        owners = set()
        for b in range(3):
            support = read_back(tasks.support_x[b], tasks.support_y[b])
            query = read_back(tasks.query_x[b], tasks.query_y[b])
            assert len(support) == 6
            assert len(query) == 8
            assert not set(support) & set(query)
            owners.add(owner(users, {columns[c]: r for c, r in (support | query).items()}))
        assert len(owners) == 3


def test_the_test_is_on_all_other_ratings_of_users_that_no_update_sees(ratings):
    arena, columns, users = ratings_problem().arena(1), most_rated(ratings, 30), by_user(ratings)
    testers = set()
    for b in range(10):
        support = read_back(arena.test.support_x[b], arena.test.support_y[b])
        counted = arena.query_mask[b]
        query = read_back(arena.test.query_x[b][counted], arena.test.query_y[b][counted])
        known = {columns[c]: r for c, r in (support | query).items()}
        user = owner(users, known)
        assert known == {item: r for item, r in users[user].items() if item in columns}
        assert len(support) == 6
        assert not set(support) & set(query)
        testers.add(user)
    assert len(testers) == 10
    seen = set()
    for update in range(60):
        tasks = arena.batch(update)
        for b in range(3):
            x = torch.cat([tasks.support_x[b], tasks.query_x[b]])
            y = torch.cat([tasks.support_y[b], tasks.query_y[b]])
            seen.add(owner(users, {columns[c]: r for c, r in read_back(x, y).items()}))
    assert not seen & testers
    assert len(seen) > 40


def test_the_leak_lets_training_see_the_test_users(ratings):
    assert ratings_problem(leak=True).arena(1).counts["training"] == ratings_problem().arena(1).counts["training"] + 10
    assert torch.equal(ratings_problem(leak=True).arena(1).test.query_y, ratings_problem().arena(1).test.query_y)


def test_counts_are_those_of_the_rule(ratings):
    users, columns = by_user(ratings), most_rated(ratings, 30)
    rated = [sum(item in columns for item in mine) for mine in users.values()]
    problem = ratings_problem(min_ratings=24, shots=10, queries=17)
    arena = problem.arena(1)
    able = sum(count >= 27 for count in rated)
    assert arena.counts == {"users": sum(count >= 24 for count in rated), "training": able - 10, "test": 10}
    told = []
    problem.prepare(told.append)
    assert any(f"{able:,} of them have enough" in sentence for sentence in told)


def test_guesses_are_means_of_what_may_be_known(ratings):
    arena, columns, users = ratings_problem().arena(1), most_rated(ratings, 30), by_user(ratings)
    testers = []
    for b in range(10):
        x = torch.cat([arena.test.support_x[b], arena.test.query_x[b][arena.query_mask[b]]])
        y = torch.cat([arena.test.support_y[b], arena.test.query_y[b][arena.query_mask[b]]])
        testers.append(owner(users, {columns[c]: r for c, r in read_back(x, y).items()}))
    others = {u: mine for u, mine in users.items() if u not in testers}
    known = [[mine[item] for mine in others.values() if item in mine] for item in columns]
    by_item = [sum(values) / len(values) for values in known]
    mean = sum(map(sum, known)) / sum(map(len, known))
    shots = [read_back(arena.test.support_x[b], arena.test.support_y[b]) for b in range(10)]
    at = arena.guesses
    for b, mine in enumerate(shots):
        own = sum(mine.values()) / len(mine)
        offset = sum(r - by_item[c] for c, r in mine.items()) / len(mine)
        for column in range(30):
            assert float(at["global-mean"][b, column]) == pytest.approx(mean, rel=1e-6)
            assert float(at["item-mean"][b, column]) == pytest.approx(by_item[column], rel=1e-6)
            assert float(at["user-mean"][b, column]) == pytest.approx(own, rel=1e-6)
            assert float(at["item-user-mean"][b, column]) == pytest.approx(by_item[column] + offset, rel=1e-6)


def test_too_few_users_are_told_of(ratings):
    with pytest.raises(am.InputError, match="lower shots"):
        ratings_problem(shots=20, queries=20).arena(1)


def test_missing_data_are_told_with_the_command_that_gets_them():
    with pytest.raises(am.InputError, match="amaml-bench fetch jester"):
        make_problem("jester", {}).arena(1)
