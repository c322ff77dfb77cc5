"""Layers that several networks share."""

import torch

from gmvq.networks.layers import even_times


def test_times_of_all_ranks_are_those_of_one_process(monkeypatch):
    torch.manual_seed(0)
    parts = []
    for rank in range(2):
        for name, function in (("world_size", lambda: 2), ("rank", lambda: rank), ("sum_over_ranks", lambda _: 1.625)):  # noqa: B023
            monkeypatch.setattr(f"gmvq.networks.layers.{name}", function)
        parts.append(even_times(4, torch.device("cpu"), over_ranks=True))
    assert torch.cat(parts).sort().values.tolist() == [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
    assert torch.stack(parts).diff(dim=1).remainder(1).eq(0.25).all()
    # an evaluation of one rank does not wait for the others
    alone = even_times(4, torch.device("cpu"))
    assert alone.sort().values.diff().allclose(torch.tensor(0.25))
