import pytest
import torch
import torch.nn.functional as F

from gmvq.quantizers import NoGradient, Rotation, StraightThrough
from gmvq.quantizers.random_projection import RandomProjectionQuantizer


def test_labels_are_those_of_the_paper():
    torch.manual_seed(0)
    quantizer = RandomProjectionQuantizer(20, 64, codebook_dim=8).double()
    latents = 3 * torch.randn(100, 20, dtype=torch.float64) + 1
    normal = (latents - latents.mean(-1, keepdim=True)) / latents.std(-1, correction=0, keepdim=True)
    directions = F.normalize(normal @ quantizer.random_projection, dim=-1)
    codes = F.normalize(quantizer.random_codes, dim=-1)
    assert torch.equal(quantizer.encode(latents), (directions @ codes.T).argmax(-1))


def test_a_closed_case():
    quantizer = RandomProjectionQuantizer(3, 2, codebook_dim=1, normalize=False).double()
    quantizer.random_projection.copy_(torch.tensor([[2.0], [0.0], [0.0]]))
    quantizer.random_codes.copy_(torch.tensor([[0.5], [-3.0]]))
    out = quantizer(torch.tensor([[4.0, 9.0, 9.0], [-0.1, 9.0, 9.0]], dtype=torch.float64))
    assert out.codes.tolist() == [0, 1]
    assert out.values.tolist() == [[0.5, 0.0, 0.0], [-0.5, 0.0, 0.0]]  # what times A is 1 and -1


@pytest.mark.parametrize("normalize", [True, False])
def test_a_code_is_shown_as_the_shortest_vector_that_projects_to_it(normalize):
    torch.manual_seed(0)
    quantizer = RandomProjectionQuantizer(10, 32, codebook_dim=4, normalize=normalize).double()
    shown, projection = quantizer.codebook, quantizer.random_projection
    torch.testing.assert_close(shown @ projection, quantizer.code_vectors)
    if normalize:
        torch.testing.assert_close(shown.mean(-1), torch.zeros(32, dtype=torch.float64))
        projection = projection - projection.mean(0)
    torch.testing.assert_close(shown, quantizer.code_vectors @ torch.linalg.pinv(projection))
    assert torch.equal(quantizer.encode(shown), torch.arange(32))


def test_normalized_latents_forget_offset_and_scale():
    torch.manual_seed(0)
    latents = torch.randn(50, 12)
    quantizer = RandomProjectionQuantizer(12, 64, codebook_dim=4)
    assert torch.equal(quantizer.encode(5 * latents + 7), quantizer.encode(latents))
    plain = RandomProjectionQuantizer(12, 64, codebook_dim=4, normalize=False)
    assert torch.equal(plain.encode(5 * latents), plain.encode(latents))
    assert not torch.equal(plain.encode(5 * latents + 7), plain.encode(latents))


def test_nothing_learns():
    torch.manual_seed(0)
    quantizer = RandomProjectionQuantizer(8, 16, codebook_dim=4)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    for _ in range(3):
        out = quantizer(torch.randn(100, 8, requires_grad=True))
        assert out.loss == 0
        out.loss.add_(1.0)  # a fresh tensor each time
        out.values.sum().backward()
    assert not list(quantizer.unfreeze().parameters())
    assert set(before) == {"training_progress", "random_projection", "random_codes"}
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_gradient_passes_unless_told_otherwise():
    torch.manual_seed(0)
    latents = torch.randn(10, 8, requires_grad=True)
    RandomProjectionQuantizer(8, 16, codebook_dim=4)(latents).values.square().sum().backward()
    assert (latents.grad.abs().sum(-1) > 0).all()
    constant = RandomProjectionQuantizer(8, 16, codebook_dim=4, estimator=NoGradient())(latents)
    assert not constant.values.requires_grad


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("constant", [0.0, 0.1, 700.0])
@pytest.mark.parametrize("estimator", [StraightThrough(), Rotation()], ids=repr)
def test_silence_gets_no_steep_gradient(normalize, constant, estimator):
    torch.manual_seed(0)
    quantizer = RandomProjectionQuantizer(8, 16, codebook_dim=4, normalize=normalize, estimator=estimator)
    silence = torch.full((5, 8), constant, requires_grad=True)
    (quantizer(silence).values * torch.randn(5, 8)).sum().backward()
    assert silence.grad.abs().max() < 1e5


def test_labels_survive_save_and_load():
    first, second = (RandomProjectionQuantizer(8, 16, codebook_dim=4) for _ in range(2))
    second.load_state_dict(first.state_dict())
    latents = torch.randn(50, 8)
    assert torch.equal(first.encode(latents), second.encode(latents))
    assert torch.equal(first.codebook, second.codebook)


def test_bad_arguments_get_a_reason():
    with pytest.raises(ValueError, match="'codebook_dim' must be less than 'dim' = 8"):
        RandomProjectionQuantizer(8, 16, codebook_dim=8)
    assert RandomProjectionQuantizer(8, 16, codebook_dim=8, normalize=False).codebook.shape == (16, 8)
    with pytest.raises(ValueError, match="'codebook_dim' must be at most"):
        RandomProjectionQuantizer(8, 16, codebook_dim=9)
