"""``benchmarks/profile_step.py``: a step by parts is the step."""

import importlib.util
from pathlib import Path

import pytest
import torch

from gmvq import recipes
from gmvq.stages import load_data

PATH = Path(__file__).parents[2] / "benchmarks/profile_step.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("profile_step", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run():
    recipe = recipes.changed(recipes.digits(), width=8, blocks=1, batch_size=8, codebook_size=16)
    return recipe, load_data(recipe.data)


@pytest.mark.parametrize("name", ["gaussian-mixture", "vector-ema", "vector-quantize-pytorch"])
def test_a_step_by_parts_is_the_step(script, run, name):
    if name == script.PEER:
        pytest.importorskip("vector_quantize_pytorch")
    whole, divided = (script.subject(name, *run) for _ in range(2))
    for subject in (whole, divided):
        torch.manual_seed(1)
        for _ in range(2):
            seconds = subject.step() if subject is whole else subject.step_by_parts()
        subject.batches.close()
    assert set(seconds) == set(script.PARTS)
    assert all(value > 0 for value in seconds.values())
    for (key, one), other in zip(whole.model.state_dict().items(), divided.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=key, rtol=1e-5, atol=1e-6)


def test_turns_and_medians(script, run):
    subjects = {name: script.subject(name, *run) for name in ("gaussian-mixture", "vector-ema")}
    found = script.measure(subjects, rounds=2, steps=2)
    for subject in subjects.values():
        assert subject.steps == script.WARM_UP_STEPS + 2 * 2 * 2
        assert script.batch_milliseconds(subject.loader) > 0
        subject.batches.close()
    for figures in found.values():
        assert len(figures["rounds"]) == 2
        assert sum(figures["shares"].values()) == pytest.approx(1, abs=0.2)  # medians of shares
        assert set(figures["milliseconds"]) == set(script.PARTS)
