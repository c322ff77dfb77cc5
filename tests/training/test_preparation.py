"""Devices of a run; those of other machines stand in as accelerate is asked for them."""

import os

import pytest
import torch
from accelerate.state import PartialState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gmvq.quantizers import QUANTIZERS, random_projection, vector
from gmvq.quantizers.parts import clustering, codebook
from gmvq.training import Training, preparation, train
from gmvq.training.loop import Loop
from gmvq.training.preparation import make_accelerator

HERE = [None, "cpu", *(["cuda", "cuda:0"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", HERE)
def test_a_run_trains_on_the_device_it_names(data, make_model, make_training, tmp_path, device):
    model = train(make_model(), data, make_training(steps=2, device=device), tmp_path).model
    fastest = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    assert model.device.type == (device or fastest).partition(":")[0]


def test_one_run_after_another_has_its_own_device():
    training = Training()
    for device in ("meta", "cpu"):  # as cuda:1 and cpu would be
        object.__setattr__(training, "device", device)
        accelerator = make_accelerator(training)
        assert accelerator.device == torch.device(device)
        assert preparation._DEVICE not in os.environ
    PartialState._reset_state()


def test_processes_cannot_share_one_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    training = Training()
    object.__setattr__(training, "device", "cuda:1")
    with pytest.raises(ValueError, match=r"'device' must be .* for several processes, got 'cuda:1'. .*CUDA_VISIBLE"):
        make_accelerator(training)


def test_a_resumed_run_may_change_its_device(data, make_model, make_training, tmp_path, stopping_at):
    with stopping_at(10):
        train(make_model(), data, make_training(), tmp_path)
    train(make_model(), data, make_training(device="cpu"), tmp_path, resume=True)


class NoDoubles(TorchDispatchMode):
    """Refuses float64, which Apple's MPS does not have."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, function
        return made


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_no_step_needs_float64(data, make_model, make_training, tmp_path, monkeypatch, quantizer):
    step = Loop._step

    def watched(loop, batches):
        with NoDoubles():
            step(loop, batches)

    def coarse(number, device):  # as on MPS
        return torch.rand(number)

    monkeypatch.setattr(Loop, "_step", watched)
    for module in (codebook, vector):
        monkeypatch.setattr(module, "uniform", coarse)
    for module in (clustering, random_projection):
        monkeypatch.setattr(module, "finest_type", lambda device: torch.float32)
    train(make_model(quantizer), data, make_training(steps=3), tmp_path)
