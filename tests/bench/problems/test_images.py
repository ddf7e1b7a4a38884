import pytest
import torch

import amaml_core as am
from bench.probes import oracles
from bench.problems import make_problem

TINY = {"ways": 2, "shots": 2, "queries": 2, "tasks": 2, "filters": 2, "size": 8}


def tiny(**options):
    return make_problem("synthetic_images", TINY | options)


@pytest.fixture(scope="module")
def instance():
    return tiny().instance(0, 0)


def relative(value, reference):
    return float((value - reference).norm() / reference.norm())


def test_tasks_follow_from_the_seed_and_start_values_from_the_sample(instance):
    _, theta, tasks = instance
    _, again, same = tiny().instance(0, 0)
    _, other, shared = tiny().instance(0, 1)
    assert torch.equal(theta, again)
    assert torch.equal(tasks.support_x, same.support_x)
    assert torch.equal(tasks.query_x, shared.query_x)
    assert not torch.equal(theta, other)
    assert not torch.equal(tasks.support_x, tiny().instance(1, 0)[2].support_x)


def test_all_dtypes_share_one_point(instance):
    _, theta, tasks = tiny().instance(0, 0, torch.float32)
    assert torch.equal(instance[1].float(), theta)
    assert torch.equal(instance[2].support_x.float(), tasks.support_x)
    assert tasks.support_y.dtype == torch.int64


def test_shapes_and_balanced_classes():
    problem, theta, tasks = make_problem("synthetic_images", {"shots": 2, "queries": 3, "tasks": 3}).instance(0, 0)
    assert (tasks.support_x.shape, tasks.query_x.shape) == ((3, 10, 1, 28, 28), (3, 15, 1, 28, 28))
    assert all(row.bincount().tolist() == [2] * 5 for row in tasks.support_y)
    assert all(row.bincount().tolist() == [3] * 5 for row in tasks.query_y)
    assert problem.predict(theta.expand(3, -1), tasks.query_x).shape == (3, 15, 5)


def test_images_are_standardised():
    _, _, tasks = make_problem("synthetic_images", {"tasks": 100, "shots": 2, "queries": 2}).instance(0, 0)
    pixels = tasks.support_x.flatten(0, 1)
    assert float(pixels.mean(0).abs().max()) < 0.2
    assert float((pixels.std(0) - 1).abs().max()) < 0.2


def test_an_image_resembles_its_class_and_no_other_of_its_own_or_another_task():
    _, _, tasks = make_problem("synthetic_images", {}).instance(0, 0)
    means = [x.unflatten(1, (5, 5)).mean(2).flatten(0, 1).flatten(1) for x in (tasks.support_x, tasks.query_x)]
    alike = torch.corrcoef(torch.cat(means))[:20, 20:]  # each class of each task against all 20
    assert bool((alike.argmax(1) == torch.arange(20)).float().mean() > 0.9)
    assert float(alike.diag().mean()) > 0.6
    assert float((alike - alike.diag().diag()).abs().mean()) < 0.3


@pytest.mark.parametrize("size", [1, 16, 17, 28])
def test_every_size_fits_the_linear_layer(size):
    problem, theta, tasks = tiny(size=size).instance(0, 0)
    assert problem.predict(theta.expand(2, -1), tasks.query_x).shape == (2, 4, 2)


def test_the_activation_is_the_one_asked_for():
    made = {name: tiny(activation=name).instance(0, 0)[0].model for name in ("gelu", "relu", "tanh")}
    kinds = {name: type(model[2]).__name__.lower() for name, model in made.items()}
    assert kinds == {name: name for name in made}


def test_adaptation_learns_the_task():
    instance = make_problem("synthetic_images", {"tasks": 2, "filters": 16}).instance(0, 0, torch.float32)
    problem, theta, tasks = instance
    adapted = am.create_method("maml", inner_steps=50, inner_lr=0.02).adapt(problem, theta, tasks).adapted
    right = [problem.predict(u, tasks.query_x).argmax(-1) == tasks.query_y for u in (theta.expand(2, -1), adapted)]
    assert float(right[0].float().mean()) < 0.4
    assert 0.6 < float(right[1].float().mean()) < 1


def test_maml_is_the_unrolled_reference(instance):
    out = am.create_method("maml", inner_steps=5, inner_lr=0.05).meta_gradient(*instance)
    reference = oracles.unrolled(instance, steps=5, lr=0.05, prox=0.0)
    assert relative(out.grad, reference) < 1e-10


def test_amaml_is_near_the_flow_at_the_problems_own_tolerance():
    problem = tiny(filters=4, size=17)  # smaller, the last normalisation sees one pixel an image: the flow is stiff
    method = am.create_method("amaml", inner_steps=40, inner_lr=0.0025, rtol=1e-8, atol=1e-10, backward="rk4")
    settings = problem.reference_settings(method.options())["flow"]
    assert settings["rtol"] > 1e-11
    instance = problem.instance(0, 0)
    assert relative(method.meta_gradient(*instance).grad, oracles.flow(instance, **settings)) < 1e-5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ways": 1}, "ways=1"),
        ({"shots": 0}, "shots=0"),
        ({"size": 2.5}, "size=2.5"),
        ({"activation": "elu"}, "activation='elu'"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(am.InputError, match=said) as caught:
        tiny(**options)
    assert "\n" not in str(caught.value)
