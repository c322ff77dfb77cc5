"""What was published beside what we measured."""

from __future__ import annotations

from typing import NamedTuple

from page_rows import Entry, Experiment
from page_tables import markdown_table, run_command, with_spread

YAN = "[Yan et al., 2024](https://arxiv.org/abs/2410.10180)"
HUH = "[Huh et al., 2023](https://arxiv.org/abs/2305.08842)"


class Published(NamedTuple):
    """A row of somebody's table.

    Attributes:
        claim: What they call it.
        source: Where it stands.
        protocol: Our protocol of their data and tokens.
        contender: Our contender of their method; None where we have none.
        mse: Their error in 1e-3, None where they do not say.
        perplexity: Their perplexity.
    """

    claim: str
    source: str
    protocol: str
    contender: str | None
    mse: float | None
    perplexity: float | None


_CIFAR10, _CELEBA = "cifar10-8x8-k1024-full", "celeba128-32x32-k1024-full"
PUBLISHED = (
    Published("SQ-VAE", YAN, _CIFAR10, "stochastic", 3.36, 769),
    Published("GM-VQ", YAN, _CIFAR10, "gaussian-mixture", 3.13, 732),
    Published("GM-VQ + entropy", YAN, _CIFAR10, "gaussian-mixture", None, 879),
    Published("VQ-VAE", HUH, _CIFAR10, "vector", 5.65, 14),
    Published("affine, alternating, replaced, l2", HUH, _CIFAR10, "vector-affine", 1.74, 609),
    Published("SQ-VAE", YAN, _CELEBA, "stochastic", 9.17, 769),
    Published("GM-VQ", YAN, _CELEBA, "gaussian-mixture", 1.38, 339),
    Published("GM-VQ + entropy", YAN, _CELEBA, "gaussian-mixture", 0.97, 831),
    Published("VQ-VAE", HUH, _CELEBA, "vector", 10.02, 16),
    Published("affine, alternating, replaced, l2", HUH, _CELEBA, "vector-affine", 4.42, 873),
)
"""Hard codes, K = 1024, 64 features; mean squared error and perplexity over the test set."""


def paper_section(experiment: Experiment, published: tuple[Published, ...] = PUBLISHED) -> str:
    """The table, with the command for each protocol that has not been run."""
    header = ["Data", "Published as", "Source", "MSE (1e-3)", "Perplexity", "Ours", "MSE (1e-3)", "Perplexity"]
    lines = [markdown_table(header, [_cells(experiment, row) for row in published], words=3)]
    for protocol in dict.fromkeys(row.protocol for row in published):
        if any(_entry(experiment, row) is None for row in published if row.protocol == protocol and row.contender):
            title = experiment.title(protocol)
            lines.append(f"{title}: not run, or not in full. It needs a GPU; `{run_command(protocol)}`")
    return "\n\n".join(lines)


def _cells(experiment: Experiment, row: Published) -> list[str]:
    entry = _entry(experiment, row)
    ours = ["not run", "not run"] if row.contender else ["", ""]
    if entry is not None:
        ours = [with_spread(entry, "mse") or "diverged", with_spread(entry, "perplexity")]
    return [
        experiment.data_title(row.protocol),
        row.claim,
        row.source,
        "" if row.mse is None else f"{row.mse:.2f}",
        "" if row.perplexity is None else f"{row.perplexity:.0f}",
        f"`{row.contender}`" if row.contender else "",
        *ours,
    ]


def _entry(experiment: Experiment, row: Published) -> Entry | None:
    return next(iter(experiment.entries(row.protocol, [row.contender] if row.contender else [])), None)
