"""Explanation of each metric of a run: its name in reports, unit, meaning and good values."""

from __future__ import annotations

from collections.abc import Sequence

from gmvq.metrics.base import Measure

CODES = (
    Measure("usage", "Codes in use", "%", "Share of the codebook that held-out data chose at least once.",
            "Near {share}; far below it, the codebook has collapsed.", ".1f", 100.0),
    Measure("used_codes", "Codes used", "", "Number of codes that held-out data chose at least once.",
            "Close to {codes}.", ",.0f"),
    Measure("perplexity", "Perplexity", "", "How many equally frequent codes would carry as much information.",
            "Close to {codes} means that all codes are used evenly.", ",.1f"),
    Measure("code_entropy_bits", "Code entropy", "bits", "Average bits of a token by the frequencies of the codes.",
            "What an entropy coder saves is the gap to the bits per token.", ".3f"),
    Measure("bits_per_token", "Bits per token", "bits",
            "Length of a token without entropy coding: the logarithm of the number of codes.",
            "Set by the codebook, not learned.", ".3g"),
    Measure("bits_per_second", "Bits per second", "bits/s", "Bits of all tokens over the time of all items.",
            "Lower means smaller files; compare tokenizers at similar quality.", ",.0f"),
)  # fmt: skip
LIKELIHOOD = (
    Measure("elbo_bits_per_dim", "ELBO", "bits/dim", "Code length of the data by the evidence lower bound.",
            "Lower is better.", ".4f"),
    Measure("iwae_bits_per_dim", "Importance-weighted bound", "bits/dim",
            "A tighter bound from several draws of the latents.",
            "Below the ELBO; the gap shows how loose the ELBO is.", ".4f"),
    Measure("albo_bits_per_dim", "ALBO", "bits/dim", "The objective of training, with the aggregated posterior.",
            "Not always a bound: judge by the two above.", ".4f"),
)  # fmt: skip
PRIOR = (
    Measure("bits_per_code", "Bits of a code", "bits", "Average length of a held-out code under the prior.",
            "Good below n-grams and frequencies. Without a prior a code takes log2 of the number of codes.",
            ".3f"),
    Measure("unconditional_bits_per_code", "Without its class", "bits", form=".3f"),
    Measure("n_gram_bits_per_code", "By n-grams", "bits",
            "Length of a code given its neighbors before it, by counting.", form=".3f"),
    Measure("frequencies_bits_per_code", "By frequencies", "bits", "Length of a code by how often each occurs.",
            form=".3f"),
    Measure("levels", "Codes of a token", "", form=",.0f"),
    Measure("prior_loss", "Loss", "", "What the prior minimizes.", form=".4f"),
    Measure("held_out_loss", "Loss on items held back", "", form=".4f"),
    Measure("bits_per_dim", "Codes and item", "bits/dim", "Length of the codes, and of the item given its codes.",
            "Lower is better; at least the negative log-likelihood.", ".3f"),
)  # fmt: skip
POSTERIOR = (
    Measure("posterior_entropy", "Posterior entropy", "nats", "Average uncertainty about the code of a token.",
            "0 is certain; at {nats} all codes are equally likely.", ".3f"),
    Measure("aggregated_posterior_entropy", "Aggregated entropy", "nats",
            "Entropy of the average posterior of all tokens.", "Close to {nats}: all codes are used.", ".3f"),
    Measure("mutual_information", "Mutual information", "nats",
            "Information that a code carries about its item: the difference of the two entropies.",
            "Higher is more informative.", ".3f"),
)  # fmt: skip
EFFORT = (
    Measure("items", "Items", "", "Number of evaluated held-out items.", "", ",.0f"),
    Measure("likelihood_items", "Items of the bounds", "", "Held-out items with a bound.", "", ",.0f"),
    Measure("seconds", "Training time", "s", "Wall time of training.", "", ",.1f"),
    Measure("items_per_second", "Training speed", "items/s", "Items, or windows of them, per second.", "", ",.0f"),
    Measure("coding_seconds", "Coding time", "s", "Wall time of encoding and decoding the held-out items.", "", ".2f"),
    Measure("coding_items_per_second", "Coding speed", "items/s", "Held-out items per second.", "", ",.1f"),
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
        "Its loss on real and reconstructed patches, without regularizers.",
        "If it guesses: 2 with the hinge loss, 1.39 with the non-saturating loss. Near 0 it has won.",
        ".3f",
    ),
    Measure(
        "discriminator_accuracy",
        "Discriminator's accuracy",
        "%",
        "Share of patches that it correctly recognizes as real or reconstructed.",
        "Above 50 %, which is guessing, and below 98 %, above which its gradient is of little use.",
        ".1f",
        100.0,
    ),
    Measure("real_logit", "Logit of real patches", "", form=".3f"),
    Measure("fake_logit", "Logit of reconstructed patches", "", form=".3f"),
    Measure(
        "adversarial",
        "Adversarial loss",
        "",
        "What the autoencoder minimizes so that its reconstructions look real.",
        "",
        ".3f",
    ),
    Measure(
        "adversarial_weight",
        "Adversarial weight",
        "",
        "Weight of the adversarial loss that balances its gradient against that of the squared error, times the "
        "configured weight and the lead of the discriminator (0 if it guesses, 1 if it recognizes all patches).",
        "Rises where the adversarial gradient is small; 0 where the discriminator guesses.",
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
"""Suffixes of the keys of distortion metrics: hard codes, the soft mean, a sampled latent."""


def measure(key: str, distances: Sequence[Measure] = ()) -> Measure:
    """Returns the explanation of a metric; an unknown key becomes its own name.

    Args:
        key: Key of the metric.
        distances: Distortion metrics of the modality, which determines their units.
    """
    known = MEASURES | {each.key: each for each in distances}
    if key in known:
        return known[key]
    words = key.replace("_", " ").replace("/", ", ").strip()
    if key.startswith("bits_per_"):
        meaning = "Bits of all tokens, without entropy coding, over the number of samples."
        return Measure(
            key,
            words.capitalize(),
            "bits",
            meaning,
            "Lower means smaller files; compare tokenizers at similar bits.",
            ".3g",
        )
    return Measure(key, words[:1].upper() + words[1:])
