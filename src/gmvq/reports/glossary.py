"""What each metric of a run is: its name for a reader, its unit, what it says and how it should look, in one line."""

from __future__ import annotations

from collections.abc import Sequence

from gmvq.metrics.base import Measure

CODES = (
    Measure("usage", "Codes in use", "%", "Share of the codebook that held-out data chose at least once.",
            "Near 100 %; far below it, the codebook has collapsed.", ".1f", 100.0),
    Measure("used_codes", "Codes used", "", "The same as a number of codes.", "Close to {codes}.", ",.0f"),
    Measure("perplexity", "Perplexity", "", "How many equally frequent codes would carry as much information.",
            "Close to {codes} means that all codes are used evenly.", ",.1f"),
    Measure("code_entropy_bits", "Code entropy", "bits", "Average bits of a token under the frequencies of the codes.",
            "The gap to the bits of a token is what an entropy coder saves.", ".3f"),
    Measure("bits_per_token", "Bits per token", "bits", "Logarithm of the number of codes: a token at a fixed length.",
            "Set by the codebook, not learned.", ".3g"),
    Measure("bits_per_second", "Bits per second", "bits/s", "Bits of all tokens over the time of all items.",
            "Lower is smaller; compare only what sounds alike.", ",.0f"),
)  # fmt: skip
LIKELIHOOD = (
    Measure("elbo_bits_per_dim", "ELBO", "bits/dim", "Evidence lower bound of what is stored as a code length.",
            "Lower is better.", ".4f"),
    Measure("iwae_bits_per_dim", "Importance-weighted bound", "bits/dim",
            "The same from several draws, nearer to the true likelihood.",
            "At most about the ELBO; the gap shows how loose that is.", ".4f"),
    Measure("albo_bits_per_dim", "ALBO", "bits/dim", "The objective of training, with the aggregated posterior.",
            "Not always a bound: judge by the two above.", ".4f"),
)  # fmt: skip
PRIOR = (
    Measure("bits_per_code", "Bits of a code", "bits", "Length of a held-out code under the prior.",
            "Below n-grams and frequencies; the logarithm of the number of codes is what a code takes without a prior.",
            ".3f"),
    Measure("unconditional_bits_per_code", "The same without its class", "bits", form=".3f"),
    Measure("n_gram_bits_per_code", "By n-grams", "bits", "Length of a code given those to the left and above.",
            form=".3f"),
    Measure("frequencies_bits_per_code", "By frequencies", "bits", "Length of a code by how often each occurs.",
            form=".3f"),
    Measure("levels", "Codes of a token", "", form=",.0f"),
    Measure("prior_loss", "Loss", "", "What the prior minimizes.", form=".4f"),
    Measure("held_out_loss", "Loss on items held back", "", form=".4f"),
    Measure("bits_per_dim", "Codes and item", "bits/dim", "Length of what is stored: its codes, and it given them.",
            "Lower is better; at least the negative log-likelihood.", ".3f"),
)  # fmt: skip
POSTERIOR = (
    Measure("posterior_entropy", "Posterior entropy", "nats", "Doubt about the code of one token, on average.",
            "0 is certain; at {nats} any code would do.", ".3f"),
    Measure("aggregated_posterior_entropy", "Aggregated entropy", "nats", "Entropy of the codes over all tokens.",
            "Close to {nats}: all codes share the work.", ".3f"),
    Measure("mutual_information", "Mutual information", "nats", "What a code says of its item, their difference.",
            "Higher is more informative.", ".3f"),
)  # fmt: skip
EFFORT = (
    Measure("items", "Items", "", "Held-out items that were measured.", "", ",.0f"),
    Measure("likelihood_items", "Items of the bounds", "", "Held-out items with a bound.", "", ",.0f"),
    Measure("seconds", "Training time", "s", "Wall time of training.", "", ",.1f"),
    Measure("items_per_second", "Training speed", "items/s", "Items, or windows of them, in each second.", "", ",.0f"),
    Measure("coding_seconds", "Coding time", "s", "Wall time of encoding and decoding the held-out items.", "", ".2f"),
    Measure("coding_items_per_second", "Coding speed", "items/s", "Held-out items in each second.", "", ",.1f"),
)
TRAINING = (
    Measure("loss", "Loss", "nats/dim", form=".4f"),
    Measure("reconstruction", "Reconstruction term", "nats/dim", form=".4f"),
    Measure("bottleneck", "Bottleneck term", "nats/dim", form=".4f"),
    Measure("distance", "Expected distance", "nats/token", form=".3f"),
    Measure("aggregated_divergence", "Aggregated divergence", "nats/token", form=".4f"),
    Measure("code_divergence", "Divergence of the codes", "nats/token", form=".3f"),
    Measure("latent_divergence", "Divergence of the latents", "nats/token", form=".3f"),
    Measure("feature_distance", "Distance of features", "", form=".4f"),
    Measure(
        "discriminator",
        "Discriminator's loss",
        "",
        "What it minimizes, of both kinds of patches, without its regularizers.",
        "2 where it guesses by the hinge loss, 1.39 by the non-saturating one; near 0 it has won.",
        ".3f",
    ),
    Measure(
        "discriminator_accuracy",
        "Discriminator's accuracy",
        "%",
        "Share of the patches that it tells apart.",
        "Between 50 %, where it guesses, and 98 %, above which it teaches little.",
        ".1f",
        100.0,
    ),
    Measure("real_logit", "Logit of real patches", "", form=".3f"),
    Measure("fake_logit", "Logit of reconstructed patches", "", form=".3f"),
    Measure("adversarial", "Adversarial loss", "", "What the autoencoder minimizes to be taken for real.", "", ".3f"),
    Measure(
        "adversarial_weight",
        "Adversarial weight",
        "",
        "What makes it pull at the pixels as the squared error does, times what is configured and the lead of the "
        "discriminator: 0 where it guesses, 1 where it tells all patches.",
        "It rises where the adversarial gradient is small, and is 0 where the discriminator guesses.",
        ".3g",
    ),
    Measure("learning_rate", "Learning rate", "", form=".3g"),
    Measure("gradient_norm", "Gradient norm", "", form=".3g"),
)
GROUPS = (
    ("Codes", CODES),
    ("Likelihood of the held-out data", LIKELIHOOD),
    ("Posterior over codes", POSTERIOR),
    ("Prior over codes", PRIOR),
    ("Effort", EFFORT),
)
MEASURES = {measure.key: measure for _, group in (*GROUPS, ("Training", TRAINING)) for measure in group}
DECODINGS = ("", "_soft", "_sampled")
"""Endings of the keys of a distance between items: hard codes, the soft mean, a sampled latent."""


def measure(key: str, distances: Sequence[Measure] = ()) -> Measure:
    """The explanation of a key; a key without one gets its words as a name.

    Args:
        key: Of a metric.
        distances: Metrics of the modality at hand: a squared error is in other units for each.
    """
    known = MEASURES | {each.key: each for each in distances}
    if key in known:
        return known[key]
    words = key.replace("_", " ").replace("/", ", ").strip()
    if key.startswith("bits_per_"):
        meaning = "Bits of all tokens over all samples, at a fixed length."
        return Measure(key, words.capitalize(), "bits", meaning, "Lower is smaller; compare only at like bits.", ".3g")
    return Measure(key, words[:1].upper() + words[1:])


def duration(seconds: float) -> tuple[str, str]:
    """Seconds as number and unit: 48 s, 3:12 min or 2:05 h."""
    whole = round(seconds)
    if whole < 60:
        return (f"{seconds:.1f}" if seconds < 10 else f"{whole}"), "s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}", "min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}", "h"
