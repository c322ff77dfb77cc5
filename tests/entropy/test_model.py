import base64
import copy
import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import EXAMPLES, Example, codes_of
from hypothesis import given, settings
from hypothesis import strategies as st

from gmvq import hub
from gmvq.data.parsing import DamagedFileError
from gmvq.entropy import DamagedCodesError, EntropyConfig, EntropyModel, definition, fit
from gmvq.entropy.coding import PlainCoding
from gmvq.entropy.compiled import coding_of
from gmvq.kernels.compiled import library

GOLDEN = Path(__file__).parent / "golden.json"


def read(model: EntropyModel, data: bytes, example: Example) -> torch.Tensor:
    grid, levels = example.shape[: example.config.axes], example.shape[-1] if example.config.has_levels else None
    return model.decode(data, grid, levels, packed=example.packed, masked=example.masked)


@pytest.mark.parametrize("name", EXAMPLES)
def test_codes_come_back_with_the_same_bytes_from_cpp_and_python(name: str, monkeypatch: pytest.MonkeyPatch):
    example = EXAMPLES[name]
    codes, model = codes_of(example), EntropyModel(example.config)
    data = model.encode(codes, packed=example.packed)
    assert torch.equal(read(model, data, example), codes)
    assert data == base64.b64decode(json.loads(GOLDEN.read_text())[name]), "a file of today must open for ever"
    if not example.packed:
        assert len(data) <= model.bits(codes) / 8 + 2
    monkeypatch.setenv("GMVQ_KERNELS", "torch")
    assert EntropyModel(example.config).encode(codes, packed=example.packed) == data
    assert torch.equal(read(EntropyModel(example.config), data, example), codes)


@st.composite
def forms(draw: st.DrawFn) -> Example:
    axes, has_levels = draw(st.integers(0, 3)), draw(st.booleans())
    sizes = draw(st.lists(st.integers(1, 70_000), min_size=1, max_size=4 if has_levels else 1))
    grid = draw(st.lists(st.integers(1, 6), min_size=axes, max_size=axes))
    shape = (*grid, draw(st.integers(1, len(sizes)))) if has_levels else tuple(grid)
    return Example(EntropyConfig(tuple(sizes), axes, has_levels), shape, draw(st.booleans()), draw(st.booleans()))


@pytest.mark.skipif(library() is None, reason="there is no compiler")
@settings(max_examples=60, deadline=None)
@given(forms(), st.integers(0, 1 << 30))
def test_any_form_comes_back(example: Example, seed: int):
    codes, model = codes_of(example, seed), EntropyModel(example.config)
    masked = bool((codes < 0).any())
    example = example._replace(masked=masked)
    data = model.encode(codes, packed=example.packed)
    assert torch.equal(read(model, data, example), codes)
    symbols = model.symbols(codes)
    tables = model.tables(symbols.levels)
    how = {"packed": example.packed, "masked": masked}
    assert definition.encode(tables, definition.NOTHING, symbols.shape, symbols.paths.tolist(), **how) == data


def ramp(seed: int = 0) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    steps = torch.randint(-3, 4, (24, 30), generator=noise).cumsum(1)
    return (steps + 100).clamp(0, 199)


@pytest.fixture(scope="module")
def fitted() -> EntropyModel:
    vectors = np.arange(200)[:, None] * np.ones((1, 3))
    return fit(EntropyConfig((200,), 2), [vectors], [ramp(seed) for seed in range(1, 9)])


def test_a_fitted_model_takes_fewer_bits_and_comes_back(fitted: EntropyModel, tmp_path: Path):
    codes = ramp()
    data = fitted.encode(codes)
    assert fitted.is_fitted
    assert torch.equal(fitted.decode(data, codes.shape), codes)
    assert len(data) < 0.8 * len(EntropyModel(fitted.config).encode(codes))
    hub.save(fitted, tmp_path, tokenizer="0" * 64)
    back = hub.load(tmp_path, EntropyModel)
    assert back.encode(codes) == data
    assert hub.fingerprint(back) == hub.fingerprint(fitted)


def test_a_fitted_model_is_the_same_in_cpp_python_and_threads(fitted: EntropyModel, monkeypatch: pytest.MonkeyPatch):
    codes, made = ramp(), []
    data = fitted.encode(codes)
    threads = [threading.Thread(target=lambda: made.append(fitted.encode(codes))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [data] * 4
    assert copy.deepcopy(fitted).encode(codes) == data
    state = {name: tensor.clone() for name, tensor in fitted.state_dict().items()}
    monkeypatch.setenv("GMVQ_KERNELS", "torch")
    assert isinstance(fitted.coding(1), PlainCoding)
    assert fitted.encode(codes) == data
    vectors = np.arange(200)[:, None] * np.ones((1, 3))
    again = fit(EntropyConfig((200,), 2), [vectors], [ramp(seed) for seed in range(1, 9)])
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())


def test_learning_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch):
    model = EntropyModel(EntropyConfig((200,), 2))
    items = [model.symbols(ramp(seed))[:2] for seed in range(3)]
    quick = coding_of(model.tables(1)).learn(items)
    monkeypatch.setenv("GMVQ_KERNELS", "torch")
    slow = coding_of(model.tables(1)).learn(items)
    assert all(np.array_equal(*pair) for pair in zip(quick.learned, slow.learned, strict=True))
    assert math.isclose(quick.bits, slow.bits, rel_tol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 100])
def test_trees_have_neighbours_nearby(size: int):
    from gmvq.entropy.fitting import bisected

    points = np.arange(size)[:, None] * np.array([[1.0, 0.5]])
    paths = bisected(points)
    assert len(set(paths.tolist())) == size
    assert paths.min() >= 0
    assert paths.max() < max(1, 1 << (size - 1).bit_length())
    order = np.argsort(paths)
    assert np.array_equal(order, np.arange(size)) or np.array_equal(order, np.arange(size)[::-1])
    # equal vectors, of which no direction is the largest
    assert len(set(bisected(np.zeros((size, 2))).tolist())) == size


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        (torch.zeros(3, 3), "integers"),
        (torch.zeros(3, dtype=torch.int64), "2 axes"),
        (torch.zeros(0, 3, dtype=torch.int64), "2 axes"),
        (torch.full((3, 3), 200), "lie in"),
        (torch.full((3, 3), -2), "lie in"),
        ([[1]], "integers"),
    ],
)
def test_wrong_codes_are_refused(codes: torch.Tensor, named: str):
    with pytest.raises(ValueError, match=named):
        EntropyModel(EntropyConfig((200,), 2)).encode(codes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"codebook_sizes": ()},
        {"codebook_sizes": (0,)},
        {"codebook_sizes": (2, 2)},
        {"codebook_sizes": (2,) * 65, "has_levels": True},
        {"codebook_sizes": ((1 << 32) + 1,)},
        {"axes": 4},
        {"rate": 7},
        {"rate": 25},
        {"contexts": (("z",), ())},
        {"contexts": (("w123",), ())},
        {"contexts": (("w",) * 16, ())},
    ],
)
def test_wrong_configurations_are_refused(wrong: dict):
    with pytest.raises(ValueError, match="must be"):
        EntropyConfig(**{"codebook_sizes": (8,), "axes": 1, **wrong})


def test_codes_beyond_a_codebook_are_refused():
    # both have three high parts, so that each reads what the other writes
    larger, smaller = (EntropyModel(EntropyConfig(((1 << 17) + size,), 1)) for size in (9, 2))
    data = larger.encode(torch.tensor([(1 << 17) + 8]))
    with pytest.raises(DamagedCodesError, match="there is the code"):
        smaller.decode(data, (1,))


def test_tables_of_strangers_are_checked(fitted: EntropyModel, tmp_path: Path):
    def broken(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**fitted.state_dict(), **changed}

    for state in (
        broken(paths=torch.zeros_like(fitted.paths)),
        broken(paths=fitted.paths + 200),
        broken(places=fitted.places.flip(0)),
        broken(places=fitted.places + (1 << 20)),
        broken(nodes=fitted.nodes + (1 << 12)),
        broken(groups=fitted.groups[:-1].clone()),
        broken(weights=fitted.weights + (1 << 41)),
    ):
        with pytest.raises(ValueError, match=r"\S"):
            EntropyModel(fitted.config).load_state_dict(state)
    hub.save(fitted, tmp_path)
    file = tmp_path / hub.WEIGHTS
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedFileError):
        hub.load(tmp_path, EntropyModel)


def test_nothing_to_fit_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        fit(EntropyConfig((8,), 1), [None], [])
    with pytest.raises(ValueError, match="one for each code"):
        fit(EntropyConfig((8,), 1), [np.zeros((7, 2))], [torch.zeros(3, dtype=torch.int64)])


def test_one_item_of_one_code_is_enough():
    model = fit(EntropyConfig((8,), 1), [None], [torch.tensor([3])])
    assert torch.equal(model.decode(model.encode(torch.tensor([5])), (1,)), torch.tensor([5]))
