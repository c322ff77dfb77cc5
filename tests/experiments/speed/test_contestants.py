import pytest
import torch

from gmvq.experiments.speed import contestants
from gmvq.experiments.speed.contestants import PEER, TASKS, Shape, drawn, mixture_naive, mixture_ours, product
from gmvq.experiments.speed.shapes import clustered

SHAPE = Shape(96, 6, 40)


def test_shapes_are_read_and_written():
    assert str(Shape.parse("8192x64x1024")) == "8192x64x1024"
    for text in ("8192x64", "0x1x1", "8x8x8x8", "axbxc", " 1x1x1", "-1x1x1"):
        with pytest.raises(ValueError, match="latents x features x codes"):
            Shape.parse(text)


def test_what_is_drawn_is_the_same_in_every_process():
    latents, codes = drawn(SHAPE)
    drawn.cache_clear()
    assert torch.equal(latents, drawn(SHAPE)[0])
    assert torch.equal(codes, drawn(SHAPE._replace(rows=3))[1])
    assert (latents.shape, codes.shape, clustered(SHAPE).shape) == ((96, 6), (40, 6), (96, 6))


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, makers in TASKS.items() for name in makers])
def test_everyone_can_be_called_again_and_again(task, name):
    try:
        call = TASKS[task][name](SHAPE)
    except ImportError as error:
        pytest.skip(str(error))
    first, second = call(), call()
    if first is None:
        return
    assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))
    if task == contestants.NEAREST:
        latents, codes = drawn(SHAPE)
        assert torch.as_tensor(first).flatten().tolist() == torch.cdist(latents, codes).argmin(-1).tolist()


def test_the_product_is_whole():
    latents, codes = drawn(SHAPE)
    outputs = []
    mm = torch.mm
    try:
        torch.mm = lambda *pair, out: outputs.append(mm(*pair, out=out).sum())
        product(SHAPE, 50, 17)()
    finally:
        torch.mm = mm
    assert len(outputs) == 2 * 3
    torch.testing.assert_close(torch.stack(outputs).sum(), (latents @ codes.T).sum(), rtol=1e-3, atol=1e-3)


def test_the_naive_mixture_is_the_same_mathematics():
    latents, _ = drawn(SHAPE)
    found = []
    for module, codebook in ((mixture_ours(SHAPE), "learned_codes"), (mixture_naive(SHAPE), "codes")):
        leaves = latents.detach().requires_grad_()
        values, codes, loss, *_ = module.train()(leaves)
        gradients = torch.autograd.grad(loss, [leaves, getattr(module, codebook)])
        assert values.shape == latents.shape
        found.append((codes, loss, *gradients))
    for ours, naive in zip(*found, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-6)


def test_relaxed_samples_have_one_mean():
    torch.manual_seed(0)
    latents = drawn(SHAPE)[0][:1].expand(4000, -1)
    means = [module.train()(latents)[0].mean(0) for module in (mixture_ours(SHAPE), mixture_naive(SHAPE))]
    # a standard error of 1 / sqrt(4000) for codes of spread 1
    torch.testing.assert_close(*means, rtol=0, atol=0.08)


def test_the_peer_has_the_settings_of_ours():
    pytest.importorskip("vector_quantize_pytorch")
    latents = drawn(SHAPE)[0][None]
    ours, theirs = contestants.vector_ours(SHAPE).train(), contestants.vector_peer(SHAPE).train()
    for _ in range(3):  # moving averages stay together, too
        _, codes, loss, *_ = ours(latents)
        _, other_codes, other_loss, *_ = theirs(latents)
        assert torch.equal(codes, other_codes)
        torch.testing.assert_close(loss, other_loss.sum(), rtol=1e-4, atol=0)
    ours.update()
    torch.testing.assert_close(ours.code_vectors, theirs.codebook, rtol=1e-3, atol=1e-4)


def test_a_library_that_is_not_there_raises_import_error(monkeypatch):
    def missing(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(contestants, "peer", missing)
    with pytest.raises(ImportError, match="vector_quantize_pytorch"):
        TASKS[contestants.NEAREST][PEER](SHAPE)
