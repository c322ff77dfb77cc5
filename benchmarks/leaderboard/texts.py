"""What is said beside the figures, written by hand. Results come in by placeholders in braces, never as digits.

For what a study's text may name see ``page_studies.placeholders``; a study without a text has no paragraph.
"""

from __future__ import annotations

STUDIES: dict[str, str] = {
    "objective": (
        "Where the decoder sees hard codes, the ELBO has an error of {mse_of[ELBO]} (1e-3), {against[ELBO]}: its "
        "divergence pulls the posterior of every token toward the prior, so it stays wide ({entropy_of[ELBO]} nats, "
        "and {entropy_of[ALBO]} under ALBO), and the variance with it. ALBO asks that of the average of the tokens "
        "alone, which sharp posteriors can grant. A decoder that sees relaxed samples holds the posterior sharp by "
        "itself; there both objectives come to the same ({mse_of[ALBO, relaxed sample]} and "
        "{mse_of[ELBO, relaxed sample]}), behind hard codes: ALBO's is {against[ALBO, relaxed sample]}. {diverged}"
    ),
    "beta": (
        "Codes are in use at every weight ({usage}), but more evenly with a larger one: the perplexity goes from "
        "{perplexity_of[0]} without the divergence to {perplexity_of[3]} at three times the model's. The error is "
        "lowest at the model's own weight; without the divergence it is {against[0]}, at three times the weight "
        "{against[3]}. {diverged}"
    ),
    "gamma": (
        "The model's own weight of the distance is the best of {measured}. A twenty-fifth of it leaves the latents too "
        "far from their codes ({against[0.04]}), twenty-five times as much holds the encoder back ({against[25]}); "
        "between a fifth and five times, less is lost ({against[0.2]}; {against[5]}). {diverged}"
    ),
    "variance": (
        "A fixed variance is in units that the latents are free to choose: with either one here the posterior stays "
        "near even (entropies of {entropy_of[fixed, 0.1]} and {entropy_of[fixed, 1]} nats; no more is possible), and "
        "errors are {mse_of[fixed, 0.1]} and {mse_of[fixed, 1]} (1e-3). A learned one for all codes is the best, one "
        "for each feature about as good ({against[for each feature]}), one for each code worse "
        "({against[for each code]}, with {usage_of[for each code]} % of the codes in use). To sharpen the posterior by "
        "a schedule does not help "
        "({against[cooled from 3]}). {diverged}"
    ),
    "temperature": (
        "What the decoder sees in training: the nearest code, a relaxed sample, or a drawn code. The nearest code is "
        "what it sees afterwards, and the best with {mse_of[hard code]} (1e-3). A relaxed sample at a temperature of "
        "a half is near it ({mse_of[0.5]}, {against[0.5]}), and cooling from one to a tenth comes to the same "
        "({mse_of[1 to 0.1]}); at one the decoder learns mixtures of codes that it is not given later "
        "({against[1]}). At a tenth the gradient of the sample is noisy ({against[0.1]}), as that of a drawn code is "
        "({against[drawn code, 1]}). The encoder answers both with a sharper posterior ({entropy_of[0.1]} and "
        "{entropy_of[drawn code, 1]} nats, against {entropy_of[hard code]}). {diverged}"
    ),
    "noise": (
        "Noise between latent and code, whose width grows with their distance as in the paper or is constant, does "
        "not help. Where it is small, nothing measurable is lost ({against[0.1]}; {against[0.3]}; "
        "{against[constant, 0.3]} with a constant width). At the paper's scale it is {against[1]}, and "
        "{against[constant, 1]} with a constant width: the form makes little difference. The encoder answers with a "
        "sharper posterior ({entropy_of[1]} and {entropy_of[constant, 1]} nats, against {entropy_of[none]}). "
        "{diverged}"
    ),
    "learned": (
        "Means by gradient in place of the M-step: {against[codes by gradient]}, with as many codes in use. Learned "
        "weights of the features: {against[feature weights]}. Learned weights of the components are part of the "
        "posterior, so that a rare code grows rarer: {usage_of[mixture weights]} % of the codes stay in use, and the "
        "error is {against[mixture weights]}. {diverged}"
    ),
    "code-dimension": (
        "Two features are too few ({against[2]}). With four or more, up to half of the latents' features, all codes "
        "stay in use behind the learned projection, and errors do not go one way: {mse_of[4]}, {mse_of[8]}, "
        "{mse_of[16]} and {mse_of[32]} (1e-3), of one seed where there is no deviation. Codes as wide as the latents "
        "have no projection: {against[64]}, with {usage_of[64]} % of the codes in use. From four features on, each "
        "doubling makes the posterior sharper, from {entropy_of[4]} to {entropy_of[64]} nats. {diverged}"
    ),
    "codebook-size": (
        "The error goes down with every fourfold codebook: {mse_of[64]}, {mse_of[256]}, {mse_of[1024]}, "
        "{mse_of[4096]} and {mse_of[16384]} (1e-3). Codes in use: {usage}, and at the largest the perplexity is "
        "{perplexity_of[16384]}; no setting is changed but the size. {diverged}"
    ),
    "batch-size": (
        "All have the same number of steps, so small batches see fewer images. The smallest two give {mse_of[4]} and "
        "{mse_of[16]} (1e-3), the largest {mse_of[256]}. The average posterior q_B of the smallest is that of a "
        "quarter as many tokens as there are codes; they are in use all the same ({usage}), at a perplexity of "
        "{perplexity_of[4]}, and of {perplexity_of[256]} with the largest. {diverged}"
    ),
    "learning-rate": (
        "Error (1e-3) at the protocol's learning rate, and at ten times that: GM-VQ {mse_of[GM-VQ]} and "
        "{mse_of[GM-VQ, 10x]}; VQ-VAE as published {mse_of[VQ-VAE]} and {mse_of[VQ-VAE, 10x]}; moving averages "
        "{mse_of[EMA, 4 features]} and {mse_of[EMA, 4 features, 10x]}. {diverged}"
    ),
    "overfitting": (
        "Error (1e-3) of held-out and of training images: {mse_of[64]} and {train_of[64]} with the smallest codebook, "
        "{mse_of[16384]} and {train_of[16384]} with the largest. Codes in use: {usage}. {diverged}"
    ),
}
"""Paragraphs by the name of the study."""

COURSES: tuple[str, ...] = ()
"""Contenders in the plot of the course of training; none for the default and the first variants that have one."""

COURSE: str = (
    "Means over seeds, of training batches: the entropy of the posterior q(c | x), the perplexity of the codes and the "
    "error of what the decoder saw."
)

GRADIENTS: str = (
    "The relaxed sample trades bias for variance by its temperature, and no temperature is good at both; showing the "
    "decoder hard codes multiplies the variance. REINFORCE with the exact error as its baseline has no bias, and near "
    "one-hot posteriors less variance than the relaxed sample. The straight-through gradient is biased for each latent "
    "by itself, since the exact gradient of the expected error vanishes where the posterior is sharp; summed into the "
    "encoder's parameters most of that cancels. Cosines of the encoder are high for nearly all estimators, whose "
    "gradients share one direction, so they do not rank them."
)
"""A paragraph above the plots of the study of gradients."""

GRADIENT_PLOTS: tuple[tuple[str, str | None], ...] = (("encoder", "straight-through"), ("codebook", "straight-through"))
"""Which plots of that study are shown: what the gradients are with respect to, and by what the model was trained, as
the rows say it; none for all of them."""
