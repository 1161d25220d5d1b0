"""What holds for every test: no network, no display, no more threads than were asked for, and no chance."""

import os
import random
import signal
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Side by side, each worker keeps to a core. It inherits what the process that starts it has set here, which is no wish.
ASKED = os.environ.setdefault("MUSICCM_TEST_THREADS", os.environ.get("OMP_NUM_THREADS", ""))
THREADS = ASKED or str(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))
os.environ["OMP_NUM_THREADS"] = THREADS

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(THREADS))
# The same examples in every run, however slow the machine is.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pretend-gpu", action="store_true", help="run the tests marked `gpu` on a device that computes "
                     "on the CPU and refuses operands in two places (tests/pretend_device.py)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `device` runs on the CPU, under its usual name, and on a GPU where there is one."""
    if "device" in metafunc.fixturenames:
        gpu = "cuda"
        if metafunc.config.getoption("--pretend-gpu"):
            from tests.pretend_device import install

            gpu = install()
        cpu = pytest.param("cpu", id=getattr(pytest, "HIDDEN_PARAM", "cpu"))
        metafunc.parametrize("device", [cpu, pytest.param(gpu, marks=pytest.mark.gpu, id="gpu")])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or config.getoption("--pretend-gpu"):
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: make test-gpu"))


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a fixture draws without a seed does not depend on the tests before it."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Nor does what a test draws depend on which fixtures were made for it."""
    _seed()


@pytest.fixture(autouse=True)
def exact_float32(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests on a GPU multiply float32 in float32: the tolerances are the CPU's."""
    if "gpu" not in request.keywords:
        yield
        return
    from musiccm.embedders.frozen import full_float32

    with full_float32():
        yield
