"""Contenders of experiments: quantizers with their published defaults or with other options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gmvq.experiments import grid
from gmvq.experiments.studies import STUDIES
from gmvq.recipes import changed
from gmvq.stages.tokenizer import Run


@dataclass(frozen=True)
class Contender:
    """One row of a table.

    Args:
        name: Name on the command line.
        title: Name in tables.
        quantizer: Name of the quantizer in :data:`gmvq.quantizers.QUANTIZERS`.
        options: Arguments of the quantizer that are added to those of its name or replace them.
        changes: Fields of model or training that differ from the protocol, for studies.
    """

    name: str
    title: str
    quantizer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the changes to the protocol's run as JSON types."""
        settings = {"quantizer": self.quantizer, "options": self.options, "changes": self.changes}
        return json.loads(json.dumps(settings, default=dict))

    def run(self, template: Run, seed: int) -> Run:
        """Returns the template with this quantizer and seed."""
        options = {**template.model.quantizer_options, **self.options}
        run = replace(
            template,
            name=f"{template.name}/{self.name}",
            model=replace(template.model, quantizer=self.quantizer, quantizer_options=options),
            training=replace(template.training, seed=seed),
        )
        return changed(run, **self.changes)


_LOW = {"codebook_dim": 4}

_RIVALS = (
    Contender("vector", "VQ-VAE as published", "vector"),
    Contender("vector-kmeans", "VQ-VAE from k-means", "vector-kmeans"),
    Contender("vector-ema", "VQ-VAE, moving averages, revival", "vector-ema"),
    Contender("vector-ema-4", "VQ-VAE, moving averages, 4 features", "vector-ema", _LOW),
    # features and commitment as in GM-VQ, to separate the effects of these and of the mixture
    Contender(
        "vector-ema-4-light",
        "VQ-VAE, moving averages, 4 features, commitment 0.01",
        "vector-ema",
        {**_LOW, "commitment_weight": 0.01},
    ),
    Contender("vector-kmeans-4", "VQ-VAE from k-means, 4 features", "vector-kmeans", _LOW),
    Contender("vector-affine", "Huh et al.: affine, alternating, replaced, l2", "vector-affine"),
    Contender(
        "vector-cosine", "improved VQGAN: cosine, 32 features", "vector-ema", {"cosine": True, "codebook_dim": 32}
    ),
    Contender(
        "vector-rotation", "VQ-VAE, moving averages, rotation trick", "vector-ema", {"estimator": {"kind": "Rotation"}}
    ),
    Contender("vector-diveq", "VQ-VAE from k-means, DiVeQ", "vector-kmeans", {"estimator": {"kind": "DiVeQ"}}),
    Contender("finite-scalar", "FSQ", "finite-scalar"),
    Contender("latent", "latent quantization", "latent"),
    Contender("lookup-free", "LFQ", "lookup-free"),
    Contender("binary-spherical", "BSQ", "binary-spherical"),
    Contender("simvq", "SimVQ", "simvq"),
    Contender("index-backpropagation", "IBQ", "index-backpropagation"),
    Contender("stochastic", "SQ-VAE", "stochastic"),
    Contender("optimal-transport", "OptVQ", "optimal-transport"),
    Contender("gaussian-codes", "Gaussian Quant", "gaussian-codes"),
    Contender("random-projection", "BEST-RQ", "random-projection"),
    Contender("product", "product, 2 x 32 codes", "product"),
    Contender("residual", "residual, 2 x 32 codes", "residual"),
    Contender("implicit-residual", "QINCo, 2 x 32 codes", "implicit-residual"),
    Contender("hierarchical", "VAR's scales, 181 codes", "hierarchical"),
)

# the paper's parts in all but the number of features: with as many as the latents have it keeps few codes
_PAPER = Contender(
    "gaussian-mixture-paper",
    "GM-VQ in the paper's form: relaxed sample, noise, codes and feature weights by gradient",
    "gaussian-mixture",
    {
        **_LOW,
        "estimator": {"kind": "GumbelSoftmax", "temperature": {"kind": "Geometric", "start": 1.0, "end": 0.1}},
        "noise": 1.0,
        "learned": ["codebook", "feature_weights"],
    },
)

DEFAULT = Contender("gaussian-mixture", "GM-VQ", "gaussian-mixture", {"codebook_dim": None})


def _variants() -> list[Contender]:
    """Returns the variants of studies and of the grid, which are not contenders by themselves."""
    bases = {contender.name: contender for contender in (DEFAULT, _PAPER, *_RIVALS)}
    wanted = [(point.contender, point) for study in STUDIES.values() for point in study.points]
    wanted += [(place.name(name), place) for name in grid.FIELD for place in grid.settings(name)]
    found: dict[str, Contender] = {}
    for name, changed_by in wanted:
        if name not in bases:
            base = bases[name.partition(":")[0]]
            title, options = f"{base.title}, {name.partition(':')[2]}", {**base.options, **changed_by.options}
            found.setdefault(name, Contender(name, title, base.quantizer, options, changed_by.changes))
    return list(found.values())


CONTENDERS: dict[str, Contender] = {
    contender.name: contender for contender in (DEFAULT, _PAPER, *_RIVALS, *_variants())
}
"""All contenders by name: GM-VQ, other quantizers, and the variants of GM-VQ for studies."""

GROUPS: dict[str, tuple[str, ...]] = {
    "all": (DEFAULT.name, _PAPER.name, *(contender.name for contender in _RIVALS)),
    **{f"study:{study.name}": tuple(point.contender for point in study.points) for study in STUDIES.values()},
    "studies": tuple(dict.fromkeys(point.contender for study in STUDIES.values() for point in study.points)),
    "grid": tuple(dict.fromkeys(place.name(name) for name in grid.FIELD for place in grid.settings(name))),
}
"""Names of groups of contenders."""


def chosen(names: Sequence[str]) -> list[Contender]:
    """Returns the contenders with the given names or in the given groups, each once.

    Raises:
        ValueError: If a name is neither a contender nor a group.

    Example:
        >>> [contender.title for contender in chosen(["gaussian-mixture", "finite-scalar"])]
        ['GM-VQ', 'FSQ']
    """
    found: dict[str, Contender] = {}
    for name in names:
        if name not in GROUPS and name not in CONTENDERS:
            known = ", ".join((*GROUPS["all"], *GROUPS))
            raise ValueError(f"'quantizers' under a protocol must be of {known}, got {name!r}. Check the spelling.")
        for one in GROUPS.get(name, (name,)):
            found[one] = CONTENDERS[one]
    if not found:
        raise ValueError("'quantizers' must be at least one, got none. Use all.")
    return list(found.values())
