"""What every test starts from: no hub, one thread, a fixed seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

# Tiny models gain nothing from threads, which wait for each other where cores are busy (10x).
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Compute on the CPU, also on a machine with a GPU, where GPU tests are not asked for."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs CUDA where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="there is no CUDA"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make random numbers the same in every run."""
    torch.manual_seed(0)
