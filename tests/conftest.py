"""What every test starts from: no hub, two threads, a fixed seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make random numbers the same in every run."""
    torch.manual_seed(0)
