"""The device of the tests that take one."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where tests that take a device run")


def pytest_configure(config):
    if config.getoption("--device") == "cuda":
        import torch  # reports and their tests do without it

        if not torch.cuda.is_available():
            pytest.exit("This machine has no CUDA device that torch can use; no test was run.", returncode=0)


def pytest_runtest_setup(item):
    mark = item.get_closest_marker("cpu_only")
    if mark is not None and item.config.getoption("--device") != "cpu":
        pytest.skip(mark.kwargs["reason"])


@pytest.fixture(scope="session")
def device(request):
    """Where θ, tasks and models of a test are."""
    return request.config.getoption("--device")
