import oracles
import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian

import amaml_core as am


def run(case, **options):
    options = {"inner_steps": 8, "inner_lr": 0.05, "cg_steps": case.problem.dim, "cg_tol": 1e-13, **options}
    return am.create_method("imaml", **options).meta_gradient(case.problem, case.theta, case.tasks)


@pytest.mark.parametrize("variant", ["paper-gd", "paper-hf"])
@pytest.mark.parametrize("lam", [3.0, 10.0])  # large enough for I + H/λ to be positive definite
def test_the_implicit_system_is_solved(case, variant, lam):
    found = run(case, variant=variant, lam=lam)
    for b in range(len(case.tasks)):
        expected = oracles.implicit_gradient(case.support(b), case.query(b), found.adapted[b], lam)
        assert oracles.relative(found.task_grads[b], expected) < 1e-8


@pytest.mark.parametrize("lam", [1.0, 3.0])
def test_paper_gd_descends_the_regularised_loss(case, lam):
    expected = case.per_task(lambda s, q: oracles.descend(s, case.theta, 8, 0.05, prox=lam))
    assert oracles.relative(run(case, variant="paper-gd", lam=lam).adapted, expected) < 1e-12


OPTIMAL = {"paper-gd": {"inner_steps": 300, "inner_lr": 0.1}, "paper-hf": {"newton_steps": 20}}


@pytest.mark.parametrize("variant", OPTIMAL)
def test_at_the_optimum_it_is_the_slope_of_the_regularised_optimum(case, variant):
    found = run(case, variant=variant, lam=3.0, inner_tol=1e-10, cg_tol=1e-10, **OPTIMAL[variant])
    directions = torch.randn(4, case.problem.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def slope(support, query):
        return oracles.differences(lambda t: query(oracles.optimum(support, t, 3.0)), case.theta, directions)

    assert oracles.relative(found.adapted, case.per_task(lambda s, q: oracles.optimum(s, case.theta, 3.0))) < 1e-8
    assert oracles.relative(found.task_grads @ directions.T, case.per_task(slope)) < 1e-5
    assert set(found.status) == {"ok"}


@pytest.mark.parametrize("lam", [1.0, 3.0])
def test_official_follows_its_definition(case, lam):
    found = run(case, variant="official", lam=lam)

    def solved(support, query):
        u = oracles.descend(support, case.theta, 8, 0.05)
        u = u - 0.05 * lam * (u - case.theta)
        matrix = 2 * torch.eye(len(u), dtype=u.dtype) + hessian(support, u) / (lam + 10)
        return torch.stack([u, torch.linalg.solve(matrix, oracles.gradient(query, u))])

    expected = case.per_task(solved)
    assert oracles.relative(found.adapted, expected[:, 0]) < 1e-12
    assert oracles.relative(found.task_grads, expected[:, 1]) < 1e-8


def test_each_task_has_its_own_horizon(case):
    horizons = [0.1, 0.25, 0.4, 0.55][: len(case.tasks)]
    for variant in ("paper-gd", "official"):
        together = run(case.with_horizon(*horizons), variant=variant)
        for b, horizon in enumerate(horizons):
            alone = am.create_method(
                "imaml", variant=variant, inner_steps=8, inner_lr=horizon / 8, cg_steps=case.problem.dim, cg_tol=1e-13
            ).meta_gradient(case.problem, case.theta, case.only(b))
            assert oracles.relative(together.task_grads[b], alone.task_grads[0]) < 1e-10


def test_newton_never_climbs(case):
    def objective(out):
        return torch.stack(
            [case.support(b)(u) + 0.05 * (u - case.theta).square().sum() for b, u in enumerate(out.adapted)]
        )

    losses = case.per_task(lambda s, q: s(case.theta)).unsqueeze(0)
    options = {"variant": "paper-hf", "inner_steps": 1, "inner_lr": 1.0, "lam": 0.1, "inner_tol": 1e-9}
    for steps in range(1, 9):
        method = am.create_method("imaml", newton_steps=steps, **options)
        losses = torch.cat([losses, objective(method.adapt(case.problem, case.theta, case.tasks)).unsqueeze(0)])
    assert (losses.diff(dim=0) <= 1e-12).all()
    assert (losses[0] > losses[1]).all()
    assert (losses[-1] < 0.95 * losses[0]).all()


def quartic_well(seed: int = 0) -> oracles.Case:
    """A loss that curves downward near θ = 0."""

    def loss(prediction, target):
        return (prediction - target).square().square().mean() - 5 * (prediction - target).square().mean()

    model = nn.Linear(2, 1, bias=False).double()
    problem = am.MetaProblem(model, loss)
    x = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = torch.zeros(2, 6, 1, dtype=torch.float64)
    return oracles.Case(model, loss, problem, torch.full((2,), 0.1, dtype=torch.float64), am.TaskBatch(x, y, x, y))


def test_negative_curvature_is_told_with_its_remedy():
    found = run(quartic_well(), variant="paper-gd", inner_lr=1e-6, lam=0.5)
    assert list(found.status) == ["not_converged"] * 2
    assert all("negative curvature" in status.remedy and "lam" in status.remedy for status in found.status)
    assert torch.isfinite(found.task_grads).all()


def test_newton_gets_out_of_negative_curvature():
    case = quartic_well()
    method = am.create_method(
        "imaml", variant="paper-hf", inner_steps=1, inner_lr=1.0, lam=0.5, newton_steps=50, inner_tol=1e-8
    )
    adapted = method.adapt(case.problem, case.theta, case.tasks).adapted
    for b, u in enumerate(adapted):
        assert (oracles.gradient(case.support(b), u) + 0.5 * (u - case.theta)).norm() < 1e-6


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"inner_steps": 1, "inner_tol": 1e-8}, "raise inner_steps"),
        ({"variant": "paper-hf", "newton_steps": 1, "inner_tol": 1e-8}, "raise newton_steps"),
        ({"variant": "paper-hf", "newton_steps": 30, "cg_steps": 1, "inner_tol": 0.1, "cg_tol": 1e-9}, "cg_steps"),
        ({"variant": "official", "cg_steps": 1, "cg_tol": 1e-9}, "raise cg_steps"),
    ],
)
def test_what_did_not_converge_is_told_with_its_remedy(regression, options, remedy):
    found = run(regression, lam=3.0, **options)
    assert list(found.status) == ["not_converged"] * 3
    assert all(remedy in status.remedy for status in found.status)


@pytest.mark.parametrize("variant", ["paper-gd", "paper-hf", "official"])
def test_a_query_gradient_that_is_nan_is_not_taken_for_zero(regression, variant):
    def rooted(prediction, target):  # finite, and its derivative at 0 is not
        return (prediction - prediction.detach()).square().sum().sqrt()

    problem = am.MetaProblem(regression.model, inner_loss=regression.loss, outer_loss=rooted)
    method = am.create_method("imaml", variant=variant, inner_steps=5, inner_lr=0.1, inner_tol=1e3)
    found = method.meta_gradient(problem, regression.theta, regression.tasks)
    assert list(found.status) == ["diverged"] * 3
    assert not torch.isfinite(found.grad).all()


def test_the_newton_variant_refuses_horizons(regression):
    with pytest.raises(am.InputError, match=r"paper-hf.*TaskBatch\.horizon"):
        run(regression.with_horizon(1.0, 2.0, 3.0), variant="paper-hf")


@pytest.mark.parametrize(
    "option",
    [
        {"variant": "paper"},
        {"lam": 0.0},
        {"lam": -1.0},
        {"cg_steps": 0},
        {"cg_steps": 1.5},
        {"newton_steps": 0},
        {"cg_tol": 0.0},
        {"inner_tol": float("nan")},
    ],
)
def test_bad_options_are_refused_by_name(option):
    ((name, value),) = option.items()
    with pytest.raises(am.InputError, match=f"{name}={value!r}"):
        am.create_method("imaml", inner_steps=2, inner_lr=0.1, **option)


@pytest.mark.parametrize(
    ("variant", "target"), [("paper-gd", "stationary"), ("paper-hf", "stationary"), ("official", "surrogate")]
)
def test_target(variant, target):
    assert am.create_method("imaml", inner_steps=2, inner_lr=0.1, variant=variant).target == target
