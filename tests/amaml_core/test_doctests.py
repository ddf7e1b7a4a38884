import doctest
import importlib
import pkgutil

import pytest

import amaml_core

MODULES = ["amaml_core", *(m.name for m in pkgutil.walk_packages(amaml_core.__path__, "amaml_core."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    assert sum(len(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name))) > 5


def test_every_public_name_exists():
    assert sorted(set(amaml_core.__all__)) == sorted(amaml_core.__all__, key=str)
    assert all(hasattr(amaml_core, name) for name in amaml_core.__all__)
