"""What the drop-in classes refuse, and where they differ from the original: each with its reason."""

import math

from compat_cases import adam
from compat_fuzzing import Difference

REFUSALS = {
    "'eps' must": "counts are not smoothed",
    "'kmeans_iters' must": "ten rounds",
    "'sync_kmeans' must": "ranks are always one",
    "'sync_codebook' must": "ranks are always one",
    "'manual_ema_update' must": "update() does it",
    "'ema_update' must be None or": "counts without averages",
    "'orthogonal_reg_weight' must be 0 for moving": "no effect in the original",
    "'sync_update_v' must": "of a straight-through gradient alone",
    "'in_place_codebook_optimizer' must": "has no gradient in the original",
    "'threshold_ema_dead_code' must": "codes that do not learn",
    "'straight_through' must": "no effect, or an error, in the original",
    "'vq_bridge' must": "separate heads",
    "'use_cosine_sim' must be False": "refused by the original, too, but for levels",
    "'topk' must": "refused by the original, too",
    "'beam_size' must": "searches in evaluation",
    "'heads' must": "refused by the original, too",
    "'commitment_use_cross_entropy_loss' must": "codes that depend on the latent",
    "'quantize_dropout_cutoff_index' must": "an error in the original's forward",
    "'scale' must": "no effect in the original",
    "'allowed_dtypes' must": "float32 or float64",
    "'force_quantization_f32' must": "float32 or float64",
    "'num_codebooks' must": "levels have one codebook",
    "'preserve_symmetry' must": "levels are symmetric",
    "'experimental_softplus_entropy_loss' must": "several codebooks",
    "'dim' must be at least": "fewer features than bits",
    "'kmeans_init' must be False": "codes that do not learn do not start",
}
"""Beginnings of what ours refuses, with the reason: docs/coming-from-vector-quantize-pytorch.md lists them."""


def has(*names):
    return lambda case: any(case.options.get(name) for name in names)


def calls(*names):
    return lambda case: any(case.call.get(name) is not None for name in names)


def is_of(*kinds):
    return lambda case: (case.inner or case.kind) in kinds


def both(*conditions):
    return lambda case: all(condition(case) for condition in conditions)


def levels(case):
    """Number of levels of residual quantizers, and of hierarchies."""
    return case.options.get("num_quantizers", len(case.options.get("scales", [0])))


def is_unlike(case):
    return case.unlike


def is_one_latent(case):
    return math.prod(case.shape) == case.options.get("dim", len(case.options.get("levels", [])))


def is_features_second(case):
    return case.options.get("channel_first", len(case.shape) > 3)


def projects_signs(case):
    options = case.options
    bits = math.log2(options.get("codebook_size", 2 ** options.get("dim", 0))) * options.get("num_codebooks", 1)
    return options.get("has_projections", options.get("dim", bits) != bits)


def rotates(case):
    options = case.options
    default = not (is_of("HierarchicalVQ")(case) or options.get("directional_reparam")) and options.get("dim", 2) > 1
    return options.get("rotation_trick", default)


def either(*conditions):
    return lambda case: any(condition(case) for condition in conditions)


def threshold(case):
    return case.options.get("threshold_ema_dead_code", 2 if is_of("HierarchicalVQ")(case) else 0)


def dies(case):
    return threshold(case) > 0.1


def routes(case):
    return case.options.get("route_gradients_to_input", True)


def averages(case):
    options = case.options
    return options.get("ema_update", not (options.get("vq_bridge") or options.get("directional_reparam")))


def learns(case):
    options = case.options
    return options.get(
        "learnable_codebook", bool(options.get("vq_bridge") or options.get("directional_reparam"))
    ) or has("diveq", "implicit_neural_codebook")(case)


def freezes(case):
    return case.options.get("freeze_codebook", False) or case.call.get("freeze_codebook", False)


def is_several(case):
    """Whether there are several codebooks."""
    return levels(case) > 1 or case.options.get("heads", 1) > 1 or case.options.get("groups", 1) > 1


def warms(case):
    return case.options.get("kmeans_init", is_of("HierarchicalVQ")(case)) or case.options.get("affine_param", False)


def learns_from_scores(case):
    return has("commitment_use_cross_entropy_loss")(case) or (is_of("VectorQuantize")(case) and "indices" in case.call)


is_residual = is_of("ResidualVQ", "GroupedResidualVQ")


ALL = ("values", "codes", "loss", "gradient", "later")

DIFFERENCES = [
    Difference("noise as wide as a level, inside of its bounds", has("noise_dropout"), ALL),
    Difference(
        "a mask leaves codes out, and not only their loss",
        both(is_of("LFQ"), calls("mask")),
        ("all values", "all codes", "gradient", "later"),
    ),
    Difference(
        "a latent of no length has the value of its code: theirs is 0",
        both(
            is_unlike,
            rotates,
            either(is_residual, is_of("SimVQ", "ResidualSimVQ", "VectorQuantize", "HierarchicalVQ")),
        ),
        ALL,
    ),
    Difference(
        "a direction has a bounded gradient: theirs is up to 1e12",
        both(
            is_unlike,
            either(has("spherical", "use_cosine_sim"), both(is_of("RandomProjectionQuantizer"), calls("indices"))),
        ),
        ("gradient", "later"),
    ),
    Difference(
        "each codebook draws its own share of latents",
        both(has("num_codebooks"), has("frac_per_sample_entropy")),
        ("loss", "gradient", "later"),
    ),
    Difference(
        "the gradient through levels counts once",
        both(is_of("ResidualFSQ", "GroupedResidualFSQ"), lambda case: levels(case) > 1),
        ("gradient", "later"),
    ),
    Difference(
        "theirs leaves the rotation out where it looks up",
        both(is_of("ResidualFSQ", "GroupedResidualFSQ"), has("orthogonal_rotation")),
        ("lookup", "all loss"),
    ),
    Difference(
        "levels on a sphere look up to their values: theirs to corners of a cube, and without a rotation",
        both(is_of("ResidualLFQ", "GroupedResidualLFQ"), has("spherical", "orthogonal_rotation")),
        ("lookup", "all loss"),
    ),
    Difference(
        "a masked place looks up 0: theirs the last code",
        both(calls("mask", "lens"), lambda case: not is_of("HierarchicalVQ")(case)),
        ("lookup",),
    ),
    Difference(
        "a network between codebook and codes is looked up through: theirs looks up the codebook",
        has("vq_bridge"),
        ("lookup",),
    ),
    Difference(
        "shared heads are looked up side by side",
        lambda case: case.options.get("heads", 1) > 1 and not has("separate_codebook_per_head")(case),
        ("lookup",),
    ),
    Difference(
        "what theirs looks up of features second has another shape",
        both(
            lambda case: case.options.get("channel_last") is False or has("accept_image_fmap", "accept_3d_fmap")(case),
            has("codebook_dim", "heads"),
        ),
        ("lookup",),
    ),
    Difference(
        "the loss of uneven use is a divergence of squared distances",
        has("codebook_diversity_loss_weight"),
        ("loss", "gradient", "later"),
    ),
    Difference(
        "moments change in training only, and a latent of the batch does not replace a code as it is",
        has("affine_param"),
        ("evaluation", "lookup"),
    ),
    Difference("dead codes are replaced by other draws", dies, ("later", "state")),
    Difference(
        "dead codes are replaced by other draws before the next level of a shared codebook",
        both(
            is_of("HierarchicalVQ"),
            dies,
            lambda case: levels(case) > 1 and case.options.get("shared_codebook", True),
        ),
        ALL,
    ),
    Difference(
        "a code that has just been replaced is not taken by the batch that replaced it",
        both(dies, has("in_place_codebook_optimizer")),
        ALL,
    ),
    Difference(
        "latents to replace codes are drawn in every step",
        both(
            threshold,
            either(
                has("diveq", "nested_dropout"),
                both(either(dies, is_several), has("directional_reparam")),
                both(has("stochastic_sample_codes"), is_several),
            ),
        ),
        ALL,
    ),
    Difference(
        "what keeps codes apart sees those of the forward, not those that have just been replaced",
        both(dies, has("orthogonal_reg_weight")),
        ("loss", "gradient"),
    ),
    Difference(
        "counts are those of the codes after a step in place",
        both(has("in_place_codebook_optimizer"), has("threshold_ema_dead_code")),
        ("state", "later"),
    ),
    Difference(
        "the next level quantizes what the value leaves, which is a code",
        both(is_residual, has("directional_reparam")),
        ALL,
    ),
    Difference(
        "the way out learns from codes: theirs from what is beside them",
        both(has("codebook_dim", "heads"), has("diveq", "directional_reparam")),
        ("later",),
    ),
    Difference(
        "a frozen codebook gets no gradient: theirs gets that of the values",
        both(freezes, learns, lambda case: not routes(case) or has("diveq")(case)),
        ("later",),
    ),
    Difference(
        "a frozen codebook gets no gradient: theirs gets that of the cross-entropy",
        both(freezes, learns, has("commitment_use_cross_entropy_loss")),
        ("later",),
    ),
    Difference(
        "a frozen codebook gets no gradient: theirs gets that of what keeps codes apart",
        both(freezes, learns, has("orthogonal_reg_weight")),
        ("later",),
    ),
    Difference(
        "a step in place leaves networks beside the codebook no gradient",
        both(has("implicit_neural_codebook"), has("in_place_codebook_optimizer")),
        ("later",),
    ),
    Difference(
        "a latent shorter than 1e-4 has a shorter direction",
        both(has("use_cosine_sim"), lambda case: case.options["dim"] == 1),
        ALL,
    ),
    Difference(
        "the state of an optimizer is in no state dict",
        both(warms, lambda case: case.options.get("in_place_codebook_optimizer") is adam),
        ALL,
    ),
    Difference(
        "the best codes of one head with a codebook of its own look up to their values",
        both(calls("topk"), has("separate_codebook_per_head")),
        ("lookup",),
    ),
    Difference(
        "a mask (B, N) leaves the mean over latents: theirs takes none",
        both(is_of("LFQ"), lambda case: "mask" in case.call and case.call["mask"].ndim == 2),
        ("loss", "gradient", "later"),
    ),
    Difference(
        "moments count a batch once, also before a step in place",
        both(has("affine_param"), has("in_place_codebook_optimizer")),
        ALL,
    ),
    Difference(
        "the moments of a frozen codebook stay",
        both(has("affine_param"), either(freezes, lambda case: not (averages(case) or learns(case)))),
        ALL,
    ),
    Difference(
        "a masked loss compares inside of the projection: theirs outside",
        both(calls("mask", "lens"), has("codebook_dim", "heads")),
        ("loss", "gradient", "later"),
    ),
    Difference(
        "levels that dropout leaves out start from a later batch of training",
        both(has("kmeans_init"), has("quantize_dropout")),
        (*ALL, "evaluation"),
    ),
    Difference(
        "a latent of no length has the value of its code in evaluation, too",
        both(is_unlike, rotates, is_of("SimVQ", "ResidualSimVQ")),
        ("all values", "all codes", "all loss", "lookup"),
    ),
    Difference("values are codes: theirs are beside them", both(has("directional_reparam"), routes), ("values",)),
    Difference("values are codes: theirs are beside them, in evaluation, too", has("diveq"), ("all values",)),
    Difference(
        "codes get a share of the gradient: theirs multiplies that of the latents",
        has("sync_update_v"),
        ("gradient", "later"),
    ),
    Difference(
        "the gradient is that of the codebook of the forward: theirs is of the one after its update",
        both(either(averages, dies), learns_from_scores),
        ("gradient", "later"),
    ),
    Difference(
        "shared heads draw in the order of latents",
        both(has("stochastic_sample_codes"), lambda case: case.options.get("heads", 1) > 1),
        ALL,
    ),
    Difference(
        "each head draws its own codes to keep apart",
        both(has("orthogonal_reg_max_codes"), has("separate_codebook_per_head")),
        ("loss", "gradient", "later"),
    ),
    Difference(
        "a masked latent takes no code that is to be kept apart",
        both(has("orthogonal_reg_active_codes_only"), calls("mask", "lens")),
        ("loss", "gradient", "later"),
    ),
    Difference(
        "a masked latent is compared by its direction: theirs by itself",
        both(has("use_cosine_sim"), calls("mask", "lens")),
        ("loss", "gradient", "later"),
    ),
    Difference(
        "the gradient through levels counts once",
        both(is_residual, lambda case: levels(case) > 1, lambda case: not case.options.get("quant_grad_frac")),
        ("gradient", "later"),
    ),
    Difference("levels are frozen that are to be: theirs are not", both(is_residual, has("freeze_codebook")), ALL),
    Difference(
        "a shared codebook decays once in a step", both(is_residual, has("shared_codebook")), ("later", "state")
    ),
    Difference(
        "a shared codebook stays as it is for all levels of a forward",
        both(is_residual, has("shared_codebook"), dies),
        ALL,
    ),
    Difference(
        "a search goes by the error of the sum, in evaluation",
        has("beam_size"),
        ("all values", "all codes", "all loss", "gradient", "later", "lookup"),
    ),
    Difference(
        "bits are those of codes and come last: theirs are signs of values, in their layout",
        both(
            lambda case: case.kind == "EvoLFQ", either(is_features_second, projects_signs, has("orthogonal_rotation"))
        ),
        ("all bits", "all signs", "all first"),
    ),
    Difference(
        "bits of a sequence decode to features second: theirs to features last",
        both(has("pairs"), has("channel_first")),
        ("all decoded", "all last"),
    ),
    Difference(
        "one latent has a variance of 0, and a loss: theirs is NaN",
        both(is_of("FSP"), is_one_latent),
        ("all loss", "all variance", "all skewness", "all kurtosis", "gradient", "later"),
    ),
]
"""Differences that are meant, with what they hide."""
