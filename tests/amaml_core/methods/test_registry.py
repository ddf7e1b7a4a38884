import pytest

import amaml_core as am


@pytest.mark.parametrize("name", ["mamml", "", None, ["maml"]])
def test_an_unknown_method_is_told_the_known_ones(name):
    with pytest.raises(am.InputError, match=r"Unknown method .*amaml, fomaml, imaml, maml, remat-maml, reptile"):
        am.create_method(name, inner_steps=1, inner_lr=0.1)


def test_names_and_classes_agree():
    assert {name: method.name for name, method in am.METHODS.items()} == {name: name for name in am.METHODS}


def test_a_method_is_a_frozen_value():
    method = am.create_method("maml", inner_steps=4, inner_lr=0.25)
    assert method == am.create_method("maml", inner_steps=4, inner_lr=0.25)
    assert method.horizon == 1.0
    with pytest.raises(AttributeError):
        method.inner_lr = 1.0
