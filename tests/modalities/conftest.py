import pytest
from recordings import noise, write


@pytest.fixture
def good(tmp_path):
    """A folder with three recordings."""
    for seed in range(3):
        write(tmp_path / f"good{seed}.wav", noise(3000, seed=seed))
    return tmp_path
