import pytest
import torch
from modality_members import MEMBERS, worsened

from gmvq.metrics.distortion import ImageDistortion

members = pytest.mark.parametrize("name", MEMBERS)


def pairs(name, number=3):
    member = MEMBERS[name]()
    real = member.modality.signal.checked(member.item[None])
    return member.modality, [(worsened(real, 0.2 * (place + 1), place), real) for place in range(number)]


def cut(made, real, axes):
    """Parts of one item along its last axis, of other lengths."""
    parts = ([3, real.shape[-1] // 2, real.shape[-1] - 3 - real.shape[-1] // 2]) if axes else [real.shape[-1]]
    return zip(made.split(parts, -1), real.split(parts, -1), strict=True)


def said(distortion):
    """The metrics that can be measured of these items."""
    return {key: value for key, value in distortion.metrics().items() if value is not None}


@members
def test_accumulators_add_up(name):
    modality, items = pairs(name)
    together, first, second = (modality.distortion() for _ in range(3))
    for place, pair in enumerate(items):
        together.update(*pair)
        (first, second)[place % 2].update(*pair)
    first.add(second)
    assert first.items == together.items == 3
    assert said(first) == pytest.approx(said(together), rel=1e-12)
    first.add(modality.distortion())
    assert first.items == 3


@members
def test_an_item_in_parts_is_measured_as_the_whole(name):
    modality, items = pairs(name)
    whole, parts, single = (modality.distortion(quick=True) for _ in range(3))
    for made, real in items:
        whole.update(made, real)
        parts.update_in_parts(cut(made, real, modality.signal.axes))
        single.update_in_parts(iter([(made, real)]))
    assert whole.items == parts.items == single.items == 3
    assert said(parts) == pytest.approx(said(whole), rel=1e-12)
    assert single.metrics() == whole.metrics()
    with pytest.raises(ValueError, match="'parts' must hold at least one pair"):
        parts.update_in_parts([])


def test_parts_of_an_image_are_not_kept():
    distortion, alive = ImageDistortion(structure=False), []

    def parts():
        for _ in range(5):
            alive.append(torch.zeros(1, 3, 4, 4))
            yield alive[-1], torch.full((1, 3, 4, 4), 0.1)
            alive.clear()

    distortion.update_in_parts(parts())
    assert distortion.psnr == pytest.approx(20)
    assert distortion.images == 1
    with pytest.raises(ValueError, match="'structure' must be False for an image in parts"):
        ImageDistortion().update_in_parts([(torch.zeros(1, 3, 4, 4),) * 2] * 2)
    with pytest.raises(ValueError, match="must be finite and in"):
        distortion.update_in_parts([(torch.zeros(1, 3, 4, 4),) * 2, (torch.full((1, 3, 4, 4), torch.nan),) * 2])
