import ast
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bench
from bench import sources

ROOT = Path(bench.__file__).parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules of a package ``toy``; the returned call tells what a module of it rests on."""
    (tmp_path / "toy").mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def closure(module, without=(), **files):
        for name, text in ({"__init__": ""} | files).items():
            path = (tmp_path / "toy" / name.replace("__of__", "/")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        found = sources.closure([f"toy.{module}"], without)
        return {name.removeprefix("toy.") for name in found}

    yield closure
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "statement",
    [
        "import toy.a",
        "import toy.a\ntoy.a.f()",
        "import toy.a as x",
        "from toy import a",
        "from toy.a import f",
        "from toy.a import *",
        "from . import a",
        "from .a import f as g",
        "def later():\n    from toy.a import f",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import toy.a as x",
        "import toy\nx = toy.f",
        "import toy as t\ndef g(y: t.f): ...",
        "from toy import f",
        "import toy as t\nt.renamed(1)",
        "from toy import a as x\nx.f.attribute",
        "def one():\n    from toy.a import f\ndef two():\n    from json import dumps as f",
        "import json as x\ndef one():\n    import toy as x\n    return x.f",
    ],
)
def test_an_import_is_followed_however_it_is_written(package, statement):
    names = "from toy.a import f\nfrom toy.a import f as renamed\nfrom toy.b import h\nALL = {'h': h}\n"
    assert package("user", __init__=names, a="def f(): pass", b="def h(): pass", user=statement) == {"user", "a"}


def test_a_registry_leads_nowhere_and_what_is_named_from_it_leads_to_its_own_file(package):
    files = {"__init__": "from toy.a import f\nfrom toy.b import g\nALL = {'f': f}\n", "a": "f = 1", "b": "g = 1"}
    assert package("user", user="import toy\nprint(toy.ALL)", **files) == {"user"}
    assert package("user", user="from toy import ALL, g", **files) == {"user", "b"}


def test_all_that_is_imported_by_what_is_imported_belongs_to_it(package):
    files = {"a": "from toy import b", "b": "import toy.c as c", "c": "from toy.inner.d import x", "e": ""}
    found = package("a", inner__of__d="from toy.a import b", inner__of____init__="", **files)
    assert found == {"a", "b", "c", "inner.d"}  # and a circle ends


EITHER = "try:\n    from toy.a import f\nexcept ImportError:\n    from toy.b import f"


@pytest.mark.parametrize(
    ("init", "user", "expected"),
    [
        ("from toy.a import *", "from toy import f", {"user", "a"}),
        ("from toy.a import *", "import toy\ntoy.f()", {"user", "a"}),
        ("from toy.a import f\nfrom toy.b import g", "from toy import *", {"user", "a", "b"}),
        (EITHER, "from toy import f", {"user", "a", "b"}),
        ("from . import native", "from toy import native", {"user"}),
        ("from toy.inner import f", "from toy import f", {"user"}),
        ("f = 1", "from toy import f", {"user"}),
    ],
)
def test_names_of_a_package_lead_to_all_places_that_they_may_come_from(package, init, user, expected):
    inner = {"inner__of____init__": "from toy import f"}  # each takes it of the other
    assert package("user", __init__=init, user=user, a="f = 1", b="f = g = 1", **inner) == expected


def test_a_package_comes_before_a_module_of_its_name(package):
    """As Python has it."""
    assert package("user", user="from toy.e import f", e="f = 1", e__of____init__="f = 2") == {"user"}


def test_what_is_left_out_takes_along_what_only_it_needs(package):
    files = {"a": "import toy.b as b\nimport toy.c as c", "b": "import toy.d as d", "c": "", "d": ""}
    assert package("a", ["toy.b"], **files) == {"a", "c"}


def test_nothing_is_imported(package):
    assert package("a", a="raise SystemExit('imported')") == {"a"}
    assert "toy.a" not in sys.modules


def test_a_module_that_is_not_there_is_told():
    with pytest.raises(ModuleNotFoundError, match=r"no file of the module bench\.nothing"):
        sources.closure(["bench.nothing"])


PYTHON = '''"""A docstring,
of two lines."""  # and a comment

x = """not a docstring  # nor a comment

"""  # a comment
y = [
    # a comment
    "a lone string in a list"
    # another
]


class A:
    """Of a class."""

    z: int = 1
    """Of an attribute."""

    def f(self):
        # why
        "of a method"
        return f"# {self.z}"  # why
'''
CODE = '''x = """not a docstring  # nor a comment

"""
y = [
    "a lone string in a list"
]
class A:
    z: int = 1
    def f(self):
        return f"# {self.z}"'''


def test_comments_and_docstrings_are_no_code():
    assert sources.code(PYTHON.encode()) == CODE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"x = 1 \\\n# c\n+2\n", b"x = 1 \\\n+2\n"),
        (b"# -*- coding: latin-1 -*-\nx = '\xc3\xa9'\n", b"x = '\xc3\xa9'\n"),
        (b"x = f'''{\n\n1=}'''\n", b"x = f'''{\n1=}'''\n"),
        (b"x = '''a\n\nb'''\n", b"x = '''a\nb'''\n"),
        (b"x = 'a  # b'\n", b"x = 'a'\n"),
    ],
)
def test_different_programs_have_different_code(one, other):
    assert sources.code(one) != sources.code(other)


@pytest.mark.parametrize(
    "same",
    [b"x = 1\r\ny = 2\r\n", b"\xef\xbb\xbfx = 1  # c\ny = 2", b"# -*- coding: latin-1 -*-\n# \xe9\nx = 1\ny = 2\n"],
)
def test_what_an_editor_changes_is_no_code(same):
    assert sources.code(same) == "x = 1\ny = 2"


@pytest.mark.parametrize("path", sorted(ROOT.glob("amaml_core/**/*.py")) + sorted(ROOT.glob("bench/**/*.py")), ids=str)
def test_all_else_is_kept(path):
    """But for statements that are strings the syntax tree is the same."""
    source = path.read_text()
    assert _stripped(_mended(sources.code(source.encode()))) == _stripped(source)


def _mended(text):
    """With a statement in bodies that held a docstring alone."""
    lines = text.split("\n")
    indents = [len(line) - len(line.lstrip()) for line in lines] + [0]
    empty = [line.endswith(":") and after <= own for line, own, after in zip(lines, indents, indents[1:], strict=False)]
    return "\n".join(line + " pass" * hollow for line, hollow in zip(lines, empty, strict=True))


def _stripped(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, field, None), list):
                setattr(node, field, [one for one in statements if not _says_nothing(one)])
    return ast.dump(tree)


def _says_nothing(node):
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return text or isinstance(node, ast.Pass)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.sampled_from(["x = 1", "# a", '"""b"""', "", "y = '# c'", "def f():\n    '''d'''\n    return 1"])))
def test_remarks_never_change_the_hash(lines):
    plain = [line for line in lines if line and not line.startswith(("#", '"'))]
    plain = [line.replace("    '''d'''\n", "") for line in plain]
    assert sources.code("\n".join([*lines, ""]).encode()) == sources.code("\n".join([*plain, ""]).encode())


def test_a_hash_is_of_names_and_code(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("x = 1  # why\n")
    (tmp_path / "c.py").write_text("x = 2\n")
    a, b, c = (sources.digest({"m": tmp_path / f"{name}.py"}) for name in "abc")
    assert a == b != c
    assert a != sources.digest({"n": tmp_path / "a.py"})
    assert len(a) == sources.DIGITS


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import helper", {"helper"}),
        ("def later():\n    from helper import f", {"helper"}),
        ("from pkg.net import Net", {"pkg/__init__", "pkg/net", "pkg/base"}),
        ("import pkg", {"pkg/__init__"}),
        ("from pkg import net", {"pkg/__init__", "pkg/net", "pkg/base"}),
        ("import sys\nsys.path.insert(0, 'src')\nimport deep", {"src/deep", "helper"}),
        ("from importlib import import_module\nnet = import_module('pkg.base')", {"pkg/__init__", "pkg/base"}),
        ("import torch, os", set()),
        ("import helper as", set()),
        ("import hidden, cached, circle", {"circle"}),
    ],
)
def test_a_lone_file_rests_on_what_it_imports_from_its_folder(tmp_path, script, expected):
    files = {"helper": "import json", "pkg/__init__": "", "pkg/net": "from .base import B", "pkg/base": "B = 1"}
    files |= {"src/deep": "import helper", "unrelated": "import helper", ".venv/hidden": "", "build/cached": ""}
    files |= {"circle": "import mine", "mine": script}
    for name, text in files.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    found = sources.beside(tmp_path / "mine.py")
    assert {path.relative_to(tmp_path).with_suffix("").as_posix() for path in found} == {"mine", *expected}
