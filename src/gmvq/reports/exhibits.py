"""Exhibits of a report: reconstructed items, maps of codes and of their uncertainty, and decoded codes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gmvq.data import Items, central, evenly_spaced
from gmvq.evaluation import levels_counted
from gmvq.metrics import CompositeStatistics, countable
from gmvq.modalities import Exhibit, Picture
from gmvq.models import Autoencoder
from gmvq.quantizers import AbstractQuantizer
from gmvq.reports import plots

SHOWN = 12
"""Number of items that are shown, fewer if they are large."""
LARGE = 1 << 14
"""Samples from which an item counts as large: fewer of these are shown."""
GREATEST = 1 << 18
"""Samples of the central part that is shown of a larger item."""
COUNTED_SAMPLES = 1 << 22
"""Total samples of the items whose codes are counted, if no evaluation has counted them."""
DECODED = 48
"""Number of codes that are decoded, the most used ones."""
REPEATED = 3
"""Copies of a code along each axis that are decoded together."""
MOST_COLORED = 1 << 16
"""Largest codebook whose codes get colors."""
AT_ONCE = 1 << 24
"""Largest number of distances between tokens and codes in memory."""


class Shown(NamedTuple):
    """An item with its maps.

    Attributes:
        exhibit: The item beside its reconstruction.
        codes: Map of its codes, or None.
        similar_colors: True if similar codes have similar colors in the map.
        entropy: Posterior entropy of each token in nats ``(*grid)``, or None.
    """

    exhibit: Exhibit
    codes: Picture | None
    similar_colors: bool
    entropy: Tensor | None


@torch.no_grad()
def show_items(model: Autoencoder, items: Items) -> list[Shown]:
    """Reconstructs a few evenly spaced items.

    Args:
        model: The model in evaluation mode.
        items: Held-out items; of large ones the central part.
    """
    if not len(items):
        return []
    large = math.prod(items.sizes[0]) > LARGE and model.signal.axes > 1
    colors = code_colors(model)
    axes = model.signal.axes
    side = None if not axes else round(GREATEST ** (1 / axes))
    found = []
    for index in evenly_spaced(len(items), SHOWN // 4 if large else SHOWN):
        item = items[index] if side is None else central(items[index], axes, side)
        found.append(_show(model, item, items.names[index], colors))
    return found


def _show(model: Autoencoder, item: Tensor, name: str, colors: np.ndarray | None) -> Shown:
    batch = item[None].to(model.device)
    made = model.reconstruct(batch)[0].cpu()
    codes = model.encode(batch)[0].cpu() if model.has_code_maps else None
    exhibit = model.modality.exhibit(name, item, made, codes)
    painted = None
    if codes is not None and colors is not None and _has_places(model):
        painted = plots.token_map(colors[codes.numpy()], f"Codes of {name}")
    entropy = None
    if model.bottleneck.has_posterior and _has_places(model):
        entropy = _entropy(model, model.latents(batch)[0]).cpu()
    drawn = [part for part in exhibit.codes if isinstance(part, Picture)]
    return Shown(exhibit, painted or next(iter(drawn), None), painted is not None, entropy)


def _has_places(model: Autoencoder) -> bool:
    """Returns True if tokens have places along one or two axes, so that a map can show them."""
    return model.signal.axes in (1, 2) and model.bottleneck.quantizes_rows


def code_colors(model: Autoencoder) -> np.ndarray | None:
    """Returns a color for each code, uint8 ``(K, 3)``; None without a single codebook of a suitable size."""
    quantizer = model.bottleneck
    if not isinstance(quantizer, AbstractQuantizer) or not model.has_code_maps:
        return None
    if quantizer.code_shape or quantizer.codebook_size > MOST_COLORED:
        return None
    return plots.code_colors(quantizer.code_vectors.detach())


def _entropy(model: Autoencoder, latents: Tensor) -> Tensor:
    rows = latents.reshape(-1, latents.shape[-1])
    at_once = max(1, AT_ONCE // (model.bottleneck.codebook_size or 1))
    parts = [model.bottleneck.posterior(part).entropy for part in rows.split(at_once)]
    return torch.cat(parts).reshape(latents.shape[:-1])


@torch.no_grad()
def count_codes(model: Autoencoder, items: Items) -> CompositeStatistics:
    """Counts the codes of held-out items with up to 4 million samples in total."""
    statistics, samples = CompositeStatistics(countable(model.level_sizes)), 0
    for index, size in enumerate(items.sizes):
        samples += math.prod(size)
        if index and samples > COUNTED_SAMPLES:
            break
        codes = model.encode(items[index][None].to(model.device))
        statistics.update(levels_counted(model, codes).cpu())
    return statistics


def reach_of(statistics: CompositeStatistics) -> float:
    """Returns the largest fraction of the codes that the counted tokens could use."""
    places = statistics.places
    return min(1.0, sum(place.total for place in places) / sum(place.codebook_size for place in places))


def map_section(shown: list[Shown]) -> dict[str, Any]:
    """Builds maps of codes and of the posterior's entropy for the shown items."""
    largest = max((float(each.entropy.max()) for each in shown if each.entropy is not None), default=0.0)
    maps = []
    for each in shown:
        if each.codes is None:
            continue
        entropy = None
        if each.entropy is not None:
            entropy = plots.token_map(plots.heat(each.entropy, largest), f"Posterior entropy over {each.exhibit.name}")
        maps.append({"exhibit": each.exhibit, "codes": each.codes, "entropy": entropy})
    has_heat = any(each["entropy"] for each in maps)
    return {
        "maps": maps,
        "similar_colors": any(each.similar_colors for each in shown),
        "bar": plots.color_bar() if has_heat else None,
        "bar_maximum": f"{largest:.2f}",
    }


@torch.no_grad()
def codebook_section(model: Autoencoder, statistics: CompositeStatistics) -> dict[str, Any]:
    """Builds the chart of code usage, and decodes the most used codes."""
    places = statistics.places
    size, used = sum(place.codebook_size for place in places), sum(place.used for place in places)
    perplexities = ", ".join(f"{value:,.1f}" for value in statistics.perplexities)
    chart, decoded = "", []
    if len(places) == 1 and used:
        code_counts = places[0].code_counts
        if code_counts.is_dense:
            text = f"Share of tokens of each of the {size:,} codes, sorted: {used:,} are used and {size - used:,} never"
            chart = plots.usage_chart(places[0].counts, text)
        if not model.bottleneck.code_shape:
            decoded = _decoded(model, code_counts.seen, code_counts.times)
    return {
        "chart": chart,
        "facts": [
            ("Codes", " + ".join(f"{place.codebook_size:,}" for place in places)),
            ("Used", f"{used:,} ({100 * used / size:.1f} %)"),
            ("Dead" if reach_of(statistics) >= 1 else "Never used by these tokens", f"{size - used:,}"),
            ("Perplexity", perplexities),
            ("Counted over", f"{places[0].total:,} tokens"),
        ],
        "decoded": decoded,
        "tokens": " × ".join([str(REPEATED)] * model.signal.axes),
    }


def _decoded(model: Autoencoder, codes: Tensor, times: Tensor) -> list[Exhibit]:
    """Decodes the most used codes, each repeated along all axes."""
    chosen = times.topk(min(DECODED, len(codes)))
    grid = (REPEATED,) * model.signal.axes
    shown = codes[chosen.indices]
    items = model.decode(shown.to(model.device).reshape(-1, *[1] * len(grid)).expand(-1, *grid).contiguous()).cpu()
    shares = [f"{100 * number / int(times.sum()):.2g} %" for number in chosen.values.tolist()]
    return [
        model.modality.exhibit(f"Code {code:,}", item)._replace(note=share)
        for code, item, share in zip(shown.tolist(), items, shares, strict=True)
    ]
