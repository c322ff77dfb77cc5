"""Measures of a codec: bytes of files, beside what the probabilities say."""

from __future__ import annotations

import math
from typing import Any

from gmvq.codec.codec import Codec
from gmvq.data import Items


def measured(codec: Codec, items: Items) -> dict[str, Any]:
    """Compresses items and reads them back.

    Args:
        codec: The codec.
        items: Items of its modality.

    Returns:
        ``bytes`` of all files; ``bits_per_code`` of these, ``estimated_bits_per_code`` by the probabilities, and
        ``packed_bits_per_code``, log2(K); ``bits_per_sample``; ``least_saved``, the share of the packed size that the
        worst item saves, its header included; and the numbers of ``items`` and ``codes``.

    Raises:
        RuntimeError: If codes do not come back.
    """
    sizes = [math.log2(size) for size in codec.model.config.codebook_sizes]
    totals = {"bytes": 0, "codes": 0, "samples": 0}
    estimated, packed, least = 0.0, 0.0, math.inf
    for index in range(len(items)):
        item = items[index]
        size = codec.tokenizer.signal.size(item)
        codes = codec.encode(item)
        items.let_go(index)
        data = codec.pack(codes, size)
        if not bool((codec.unpack(data).codes == codes).all()):
            raise RuntimeError(f"The codes of {items.names[index]!r} do not come back. Please report this.")
        own = sum(sizes) * codes.numel() / len(sizes)
        totals["bytes"] += len(data)
        totals["codes"] += codes.numel()
        totals["samples"] += math.prod(size)
        estimated += codec.bits(codes)
        packed += own
        least = min(least, 1 - 8 * len(data) / own if own else 0.0)
    number = max(1, totals["codes"])
    return {
        "items": len(items),
        **{name: totals[name] for name in ("codes", "bytes")},
        "bits_per_code": 8 * totals["bytes"] / number,
        "estimated_bits_per_code": estimated / number,
        "packed_bits_per_code": packed / number,
        "bits_per_sample": 8 * totals["bytes"] / max(1, totals["samples"]),
        "least_saved": least if math.isfinite(least) else 0.0,
    }
