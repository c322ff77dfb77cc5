"""Ablations of GM-VQ: each changes one setting of the default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Point:
    """One setting of a study.

    Args:
        label: Position on the axis.
        contender: Name in the table: a contender, or ``CONTENDER:SETTING`` for a changed one.
        options: Changed options of the quantizer.
        changes: Changed fields of model or training.
    """

    label: str | float
    contender: str
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Settings that differ in one respect.

    Args:
        name: Name on the command line, as ``study:NAME``.
        title: Name in tables.
        axis: Name of the changed setting.
        scale: Scale of the axis.
        points: The settings, in order.
        protocol: Name of the protocol.
    """

    name: str
    title: str
    axis: str
    scale: Literal["log", "linear", "category"]
    points: tuple[Point, ...]
    protocol: str = "cifar10-8x8-k1024-short"


_OWN = "gaussian-mixture"


def _option(label: str | float, setting: str, **options: Any) -> Point:  # noqa: ANN401
    return Point(label, f"{_OWN}:{setting}", options=options)


def _change(label: str | float, setting: str, base: str = _OWN, **changes: Any) -> Point:  # noqa: ANN401
    return Point(label, f"{base}:{setting}", changes=changes)


def _default(label: str | float) -> Point:
    return Point(label, _OWN)


def _albo(**weights: float) -> dict[str, Any]:
    return {"kind": "ALBO", **weights}


def _gumbel(**options: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"kind": "GumbelSoftmax", **options}


def _wide(label: str, setting: str, **options: Any) -> Point:  # noqa: ANN401
    """The paper's form with codes of 64 features, as the latents of the protocols have."""
    return Point(label, f"gaussian-mixture-paper:64{setting}", options={"codebook_dim": 64, **options})


_COOLING = {"kind": "Geometric", "start": 1.0, "end": 0.1}

_STUDIES = (
    Study(
        "objective",
        "ALBO against ELBO",
        "objective",
        "category",
        (
            _default("ALBO"),
            _option("ELBO", "objective=elbo", objective="elbo"),
            _option("ALBO, relaxed sample", "objective=albo,relaxed", estimator=_gumbel(temperature=_COOLING)),
            _option(
                "ELBO, relaxed sample",
                "objective=elbo,relaxed",
                objective="elbo",
                estimator=_gumbel(temperature=_COOLING),
            ),
        ),
    ),
    Study(
        "beta",
        "Weight of KL(q_B || p)",
        "beta",
        "linear",
        (
            _option(0.0, "beta=0", objective=_albo(prior_weight=0.0)),
            _option(0.1, "beta=0.1", objective=_albo(prior_weight=0.1)),
            _default(1.0),
            _option(3.0, "beta=3", objective=_albo(prior_weight=3.0)),
        ),
    ),
    Study(
        "gamma",
        "Weight of the distance",
        "gamma",
        "log",
        (
            _option(0.04, "gamma=0.04", objective=_albo(distance_weight=0.04)),
            _option(0.2, "gamma=0.2", objective=_albo(distance_weight=0.2)),
            _default(1.0),
            _option(5.0, "gamma=5", objective=_albo(distance_weight=5.0)),
            _option(25.0, "gamma=25", objective=_albo(distance_weight=25.0)),
        ),
    ),
    Study(
        "variance",
        "Variance of the components",
        "sigma^2",
        "category",
        (
            _option("fixed, 0.1", "variance=0.1", variance=0.1),
            _option("fixed, 1", "variance=1", variance=1.0),
            _default("one for all"),
            _option("for each feature", "variance=feature", variance="feature"),
            _option("for each code", "variance=code", variance="code"),
            _option("cooled from 3", "sharpening=cooled", sharpening={"kind": "Geometric", "start": 3.0, "end": 1.0}),
        ),
    ),
    Study(
        "temperature",
        "Temperature of the relaxed sample",
        "tau",
        "category",
        (
            _default("hard code"),
            _option("0.1", "tau=0.1", estimator=_gumbel(temperature=0.1)),
            _option("0.5", "tau=0.5", estimator=_gumbel(temperature=0.5)),
            _option("1", "tau=1", estimator=_gumbel(temperature=1.0)),
            _option("1 to 0.1", "objective=albo,relaxed", estimator=_gumbel(temperature=_COOLING)),
            _option("drawn code, 1", "tau=1,hard", estimator=_gumbel(temperature=1.0, hard=True)),
        ),
    ),
    Study(
        "noise",
        "Noise of equation (5), and one of constant width",
        "nu",
        "category",
        (
            _default("none"),
            _option("0.1", "noise=0.1", noise=0.1),
            _option("0.3", "noise=0.3", noise=0.3),
            _option("1", "noise=1", noise=1.0),
            _option("constant, 0.3", "noise=constant,0.3", noise={"kind": "ConstantNoise", "scale": 0.3}),
            _option("constant, 1", "noise=constant,1", noise={"kind": "ConstantNoise", "scale": 1.0}),
        ),
    ),
    Study(
        "learned",
        "What is learned beside codes and variance",
        "learned",
        "category",
        (
            _default("codes by the M-step"),
            _option("codes by gradient", "learned=codebook", learned=["codebook"]),
            _option("feature weights", "learned=feature_weights", learned=["feature_weights"]),
            _option("mixture weights", "learned=mixture_weights", learned=["mixture_weights"]),
        ),
    ),
    Study(
        "paper",
        "The paper's form, and what costs it its codes",
        "form",
        "category",
        (
            Point("4 features", "gaussian-mixture-paper"),
            _wide("64 features", ""),
            _wide("64, no noise", ",noise=0", noise=0.0),
            _wide("64, hard codes", ",hard", estimator={"kind": "StraightThrough"}),
            _wide("64, codes by the M-step", ",m-step", learned=["feature_weights"]),
            _wide("64, feature weights fixed", ",equal", learned=["codebook"]),
        ),
    ),
    Study(
        "code-dimension",
        "Features of a code",
        "L",
        "log",
        tuple(
            _default(size) if size == 4 else _option(size, f"codebook_dim={size}", codebook_dim=size)
            for size in (2, 4, 8, 16, 32, 64)
        ),
    ),
    Study(
        "codebook-size",
        "Number of codes",
        "K",
        "log",
        tuple(
            _default(size) if size == 1024 else _change(size, f"codebook_size={size}", codebook_size=size)
            for size in (64, 256, 1024, 4096, 16384)
        ),
    ),
    Study(
        "batch-size",
        "Images in a batch, and so the tokens of q_B",
        "batch size",
        "log",
        tuple(
            _default(size) if size == 64 else _change(size, f"batch_size={size}", batch_size=size)
            for size in (4, 16, 64, 256)
        ),
    ),
    Study(
        "learning-rate",
        "A learning rate ten times too high",
        "contender",
        "category",
        tuple(
            point
            for base, title in ((_OWN, "GM-VQ"), ("vector", "VQ-VAE"), ("vector-ema-4", "EMA, 4 features"))
            for point in (
                Point(title, base),
                _change(f"{title}, 10x", "learning_rate=0.01", base, learning_rate=1e-2),
            )
        ),
    ),
    Study(
        "overfitting",
        "A large codebook and 1,000 images",
        "K",
        "log",
        tuple(
            _default(size) if size == 1024 else _change(size, f"codebook_size={size}", codebook_size=size)
            for size in (64, 1024, 16384)
        ),
        protocol="cifar10-8x8-k1024-small",
    ),
)

STUDIES: dict[str, Study] = {study.name: study for study in _STUDIES}
"""All studies by name."""
