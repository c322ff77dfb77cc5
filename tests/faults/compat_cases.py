"""Random options of the drop-in classes, most of which stay at their defaults."""

import random

import torch
from compat_fuzzing import Case
from torch import nn


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


class Draw:
    """Draws options, most of which stay at their defaults."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.options = {}

    def one(self, *values):
        return self.random.choice(values)

    def maybe(self, name, *values, chance=0.12):
        if self.random.random() < chance:
            self.options[name] = self.random.choice(values)
        return self.options.get(name)

    def yes(self, chance):
        return self.random.random() < chance


def shape_of(draw, dim, first):
    """A shape for features last or second, of rank 2 to 5."""
    batch = draw.one(2, 3)
    if first == "image":
        return (batch, dim, 3, 4)
    if first == "volume":
        return (batch, dim, 2, 3, 2)
    if first == "sequence":
        return (batch, dim, 9)
    return draw.one((batch, 9, dim), (batch, 9, dim), (batch, 9, dim), (11, dim))


def vector_level(draw):
    """Options of one codebook, for the classes that have several."""
    draw.maybe("decay", 0.5, 0.9, 1.0)
    draw.maybe("eps", 1e-3, chance=0.02)
    draw.maybe("freeze_codebook", True, chance=0.05)
    draw.maybe("kmeans_init", True)
    draw.maybe("kmeans_iters", 10, 5, chance=0.04)
    draw.maybe("use_cosine_sim", True, chance=0.2)
    draw.maybe("threshold_ema_dead_code", 1e-9, 2, chance=0.15)
    draw.maybe("commitment_weight", 0.25, 0.0, 2.0)
    draw.maybe("commitment_use_cross_entropy_loss", True)
    draw.maybe("orthogonal_reg_weight", 1.0)
    draw.maybe("orthogonal_reg_active_codes_only", True)
    draw.maybe("orthogonal_reg_max_codes", 4, 100)
    draw.maybe("codebook_diversity_loss_weight", 0.5, chance=0.08)
    draw.maybe("codebook_diversity_temperature", 10.0, chance=0.05)
    draw.maybe("stochastic_sample_codes", True)
    draw.maybe("sample_codebook_temp", 0.1, 0.0)
    draw.maybe("straight_through", True, chance=0.08)
    draw.maybe("rotation_trick", True, False, chance=0.4)
    draw.maybe("directional_reparam", True, chance=0.08)
    draw.maybe("directional_reparam_variance", 1e-3, chance=0.05)
    draw.maybe("sync_codebook", True, False, chance=0.02)
    draw.maybe("sync_kmeans", True, False, chance=0.04)
    draw.maybe("manual_ema_update", True, chance=0.02)
    if draw.yes(0.4):
        draw.options |= {"learnable_codebook": True, "ema_update": False}
        draw.maybe("in_place_codebook_optimizer", sgd, adam, chance=0.3)
        draw.maybe("sync_update_v", 0.5)
    else:
        draw.maybe("ema_update", True, False)
        draw.maybe("learnable_codebook", True, chance=0.05)
        draw.maybe("in_place_codebook_optimizer", sgd, chance=0.03)
        draw.maybe("sync_update_v", 0.5, chance=0.03)
    draw.maybe("affine_param", True, chance=0.1)
    draw.maybe("affine_param_batch_decay", 0.5, chance=0.05)
    draw.maybe("affine_param_codebook_decay", 0.5, chance=0.05)
    draw.maybe("return_zeros_for_masked_padding", False)
    draw.maybe("route_gradients_to_input", False, chance=0.08)


def bridge(code_dim):
    def made():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(code_dim, code_dim), nn.Tanh())

    return made


def mask_for(draw, shape, channels_first):
    places = torch.rand(
        shape[0], shape[-1 if channels_first else 1], generator=torch.Generator().manual_seed(draw.random.randrange(99))
    )
    mask = places > 0.4
    mask[:, 0] = True
    return mask


def vector_case(seed):
    draw = Draw(seed)
    dim = draw.one(4, 6, 8, 8, 1)
    options = draw.options
    options |= {"dim": dim, "codebook_size": draw.one(5, 12, 16)}
    vector_level(draw)
    draw.maybe("codebook_dim", 3, 4, 12, chance=0.25)
    heads = draw.maybe("heads", 2, chance=0.2) or 1
    draw.maybe("separate_codebook_per_head", True, chance=0.15 if heads == 1 else 0.5)
    if dim > 1:  # a normalized feature alone is always the same
        draw.maybe("layernorm_after_project_in", True)
    if draw.yes(0.06):
        options["vq_bridge"] = bridge(options.get("codebook_dim", dim))
    draw.maybe("manual_in_place_optimizer_update", True, chance=0.04)
    first = draw.one("image", "volume", "sequence", None, None, None, None)
    options |= {
        "image": {"accept_image_fmap": True},
        "volume": {"accept_3d_fmap": True},
        "sequence": {"channel_last": False},
    }.get(first, {})
    shape = shape_of(draw, dim, first)
    call = {}
    if len(shape) == 3 and draw.yes(0.25):
        mask = mask_for(draw, shape, first == "sequence")
        call = {"lens": mask.sum(-1)} if draw.yes(0.4) else {"mask": mask}
    for name, values, chance in (
        ("freeze_codebook", (True, False), 0.1),
        ("sample_codebook_temp", (0.5, 0.0), 0.08),
        ("return_loss_breakdown", (True,), 0.08),
        ("accum_ema_update", (True,), 0.05),
        ("ema_update", (False, True), 0.06),
        ("topk", (1, 3, 99), 0.08),
    ):
        if draw.yes(chance):
            call[name] = draw.one(*values)
    if not options.get("commitment_weight", 1) or "directional_reparam" in options:
        call.pop("topk", None)  # whose loss theirs then gives as one number
    if "straight_through" in options:
        call.pop("topk", None)  # whose values theirs then gives in another shape
    if draw.yes(0.05):
        call["ema_update_weight"] = torch.arange(options["codebook_size"]) / options["codebook_size"]
    # theirs gives values back before they are projected, masked and laid out, where it has indices
    if draw.yes(0.08) and not (call or first or heads > 1 or "codebook_dim" in options):
        call["indices"] = torch.zeros(shape[:-1], dtype=torch.int64)
    return Case("VectorQuantize", seed, options, shape, call, draw.yes(0.1))


def residual_case(seed, kind="ResidualVQ"):
    draw = Draw(seed)
    dim, options = draw.one(4, 8), draw.options
    levels = draw.one(1, 2, 3, 4)
    options |= {"dim": dim, "codebook_size": draw.one(5, 12), "num_quantizers": levels}
    vector_level(draw)
    draw.maybe("codebook_dim", 3, 12, chance=0.25)
    draw.maybe("shared_codebook", True, chance=0.15)
    draw.maybe("diveq", True, chance=0.08)
    draw.maybe("heads", 2, chance=0.02)
    draw.maybe("quantize_dropout", True, chance=0.2)
    draw.maybe("quantize_dropout_cutoff_index", 1)
    draw.maybe("quantize_dropout_multiple_of", 2)
    draw.maybe("implicit_neural_codebook", True)
    draw.maybe("mlp_kwargs", {"depth": 1}, {"dim_hidden": 6, "depth": 2}, chance=0.1)
    draw.maybe("beam_size", 2, chance=0.05)
    if "affine_param" in options:
        options.pop("beam_size", None)  # theirs then has moments that no module of theirs loads
    draw.maybe("quant_grad_frac", 0.1, 0.5, 1.0, chance=0.3)
    if draw.yes(0.1):
        options["codebook_size"] = tuple(draw.one(5, 8, 12) for _ in range(levels))
    if kind == "GroupedResidualVQ":
        options["groups"] = draw.one(1, 2)
    image = draw.maybe("accept_image_fmap", True, chance=0.05)
    shape = shape_of(draw, dim, "image" if image else None)
    call = {}
    if len(shape) == 3 and draw.yes(0.2):
        call["mask"] = mask_for(draw, shape, False)
    for name, values, chance in (
        ("freeze_codebook", (True,), 0.1),
        ("sample_codebook_temp", (0.5,), 0.08),
        ("return_all_codes", (True,), 0.1),
        ("rand_quantize_dropout_fixed_seed", (7,), 0.1 if kind == "ResidualVQ" else 0),
    ):
        if draw.yes(chance):
            call[name] = draw.one(*values)
    return Case(kind, seed, options, shape, call, draw.yes(0.1))


def grouped_case(seed):
    return residual_case(seed, "GroupedResidualVQ")


def scalar_level(draw):
    draw.maybe("scale", 2.0, chance=0.03)
    draw.maybe("allowed_dtypes", (torch.float16,), chance=0.03)
    draw.maybe("force_quantization_f32", False, chance=0.03)
    draw.maybe("noise_dropout", 0.5)
    draw.maybe("orthogonal_rotation", True, chance=0.15)


def scalar_case(seed):
    draw = Draw(seed)
    options = draw.options
    levels = [draw.one(3, 4, 5, 8, 2) if draw.yes(0.1) else draw.one(3, 4, 5, 8) for _ in range(draw.one(1, 2, 3))]
    books = draw.maybe("num_codebooks", 2, 3, chance=0.2) or 1
    options["levels"] = draw.one(levels, tuple(levels))
    scalar_level(draw)
    draw.maybe("preserve_symmetry", True, chance=0.4)
    draw.maybe("keep_num_codebooks_dim", True, False, chance=0.15)
    draw.maybe("bound_hard_clamp", True, chance=0.2)
    draw.maybe("projection_has_bias", False)
    draw.maybe("return_indices", False, chance=0.05)
    dim = draw.maybe("dim", 5, 8, chance=0.4) or len(levels) * books
    first = draw.one("image", "volume", "sequence", None, None, None)
    if first == "sequence" or draw.yes(0.05):
        options["channel_first"] = True
        first = first or "sequence"
    return Case("FSQ", seed, options, shape_of(draw, dim, first), {}, draw.yes(0.1))


def residual_scalar_case(seed):
    draw = Draw(seed)
    options = draw.options
    levels = [draw.one(3, 4, 5, 8, 2) for _ in range(draw.one(1, 2, 3))]
    options |= {"levels": levels, "num_quantizers": draw.one(1, 2, 3)}
    scalar_level(draw)
    draw.maybe("preserve_symmetry", False, chance=0.03)
    draw.maybe("num_codebooks", 2, chance=0.03)
    draw.maybe("quantize_dropout", True, chance=0.2)
    draw.maybe("quantize_dropout_cutoff_index", 1)
    draw.maybe("quantize_dropout_multiple_of", 2)
    draw.maybe("bound_hard_clamp", False, chance=0.3)
    draw.maybe("soft_clamp_input_value", 2.0, [1.5] * len(levels))
    dim = draw.maybe("dim", 5, 8, chance=0.4) or len(levels)
    first = draw.maybe("is_channel_first", True, chance=0.25)
    shape = shape_of(draw, dim, draw.one("image", "sequence") if first else None)
    call = {}
    for name, value in (("return_all_codes", True), ("rand_quantize_dropout_fixed_seed", 7)):
        if draw.yes(0.1):
            call[name] = value
    return Case("ResidualFSQ", seed, options, shape, call, draw.yes(0.1))


def signs_case(seed):
    draw = Draw(seed)
    options = draw.options
    bits = draw.one(2, 3, 4, 5)
    books = draw.maybe("num_codebooks", 2, 3, chance=0.2) or 1
    if draw.yes(0.7) or books > 1:
        options["codebook_size"] = 2**bits if draw.yes(0.95) else 6
        dim = draw.maybe("dim", 5, 8, chance=0.5) or bits * books
    else:
        dim = options["dim"] = bits
    draw.maybe("entropy_loss_weight", 0.0, 1.0)
    draw.maybe("commitment_loss_weight", 0.25, chance=0.3)
    draw.maybe("diversity_gamma", 0.5, 2.0, 0.0)
    if draw.yes(0.1):
        options["straight_through_activation"] = draw.one(nn.Tanh, nn.Identity, nn.Sigmoid)
    draw.maybe("keep_num_codebooks_dim", True, False, chance=0.15)
    draw.maybe("codebook_scale", 0.5, 2.0)
    draw.maybe("frac_per_sample_entropy", 0.5, 0.7)
    draw.maybe("has_projections", True, False)
    draw.maybe("projection_has_bias", False)
    draw.maybe("soft_clamp_input_value", 2.0, 0.4)
    draw.maybe("cosine_sim_project_in", True)
    draw.maybe("cosine_sim_project_in_scale", 3.0)
    draw.maybe("experimental_softplus_entropy_loss", True)
    draw.maybe("entropy_loss_offset", 2.0)
    draw.maybe("spherical", True, chance=0.3)
    draw.maybe("force_quantization_f32", False, chance=0.03)
    draw.maybe("orthogonal_rotation", True)
    first = draw.one("image", "volume", "sequence", None, None, None)
    if first == "sequence":
        options["channel_first"] = True
    shape = shape_of(draw, dim, first)
    call = {"inv_temperature": draw.one(1.0, 10.0)} if draw.yes(0.7) else {}
    if len(shape) > 2 and draw.yes(0.2):
        call["mask"] = torch.tensor([True, False, True][: shape[0]])
        if first is None and draw.yes(0.5):
            call["mask"] = mask_for(draw, shape, False)
    if draw.yes(0.1):
        call["return_loss_breakdown"] = True
    return Case("LFQ", seed, options, shape, call, draw.yes(0.1))


def network():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))


def linear_case(seed):
    draw = Draw(seed)
    options = draw.options
    options |= {"dim": draw.one(4, 6, 8), "codebook_size": draw.one(5, 16)}
    if draw.yes(0.15):
        options |= {"codebook_transform": network, "dim": 6}
    draw.maybe("init_fn", torch.tanh)
    draw.maybe("rotation_trick", False, chance=0.4)
    draw.maybe("input_to_quantize_commit_loss_weight", 0.0, 1.0)
    draw.maybe("commitment_weight", 0.0, 0.5)
    if "codebook_transform" not in options:
        draw.maybe("frozen_codebook_dim", 3, 12, chance=0.2)
    first = draw.one("image", "sequence", None, None)
    if first:
        options["channel_first"] = True
    return Case("SimVQ", seed, options, shape_of(draw, options["dim"], first), {}, draw.yes(0.1))


def dropout(draw):
    draw.maybe("quantize_dropout", True, chance=0.25)
    draw.maybe("quantize_dropout_cutoff_index", 1)
    draw.maybe("quantize_dropout_multiple_of", 2)


def calls_of_levels(draw, with_seed=True):
    call = {}
    for name, value in (("return_all_codes", True), ("rand_quantize_dropout_fixed_seed", 7)):
        if draw.yes(0.1) and (with_seed or name == "return_all_codes"):
            call[name] = value
    return call


def residual_signs_case(seed, kind="ResidualLFQ"):
    draw = Draw(seed)
    options = draw.options
    options |= {"dim": draw.one(4, 8), "codebook_size": draw.one(4, 16), "num_quantizers": draw.one(1, 2, 3)}
    draw.maybe("entropy_loss_weight", 0.0, 1.0)
    draw.maybe("commitment_loss_weight", 0.25, chance=0.3)
    draw.maybe("diversity_gamma", 0.5, 0.0)
    draw.maybe("soft_clamp_input_value", 2.0, chance=0.2)
    draw.maybe("spherical", True, chance=0.2)
    draw.maybe("orthogonal_rotation", True, chance=0.05)
    draw.maybe("experimental_softplus_entropy_loss", True)
    dropout(draw)
    if kind == "GroupedResidualLFQ":
        options["groups"] = draw.one(1, 2)
    call = calls_of_levels(draw, kind == "ResidualLFQ")
    return Case(kind, seed, options, (draw.one(2, 3), 9, options["dim"]), call)


def residual_linear_case(seed):
    case = linear_case(seed)
    draw = Draw(seed)
    draw.options = case.options
    draw.options["num_quantizers"] = draw.one(1, 2, 3)
    dropout(draw)
    return Case("ResidualSimVQ", seed, draw.options, case.shape, calls_of_levels(draw), case.unlike)


def grouped_scalar_case(seed):
    draw = Draw(seed)
    options = draw.options
    levels = [draw.one(3, 4, 5, 8) for _ in range(draw.one(1, 2, 3))]
    groups = draw.one(1, 2)
    options |= {"levels": levels, "num_quantizers": draw.one(1, 2, 3), "groups": groups}
    options["dim"] = draw.one(len(levels), 4) * groups
    scalar_level(draw)
    draw.maybe("bound_hard_clamp", False, chance=0.3)
    dropout(draw)
    shape = (draw.one(2, 3), 9, options["dim"])
    return Case("GroupedResidualFSQ", seed, options, shape, calls_of_levels(draw, False), draw.yes(0.1))


def latent_case(seed):
    draw = Draw(seed)
    options = draw.options
    levels = [draw.one(3, 4, 5, 8) for _ in range(draw.one(1, 2, 3))]
    books = draw.maybe("num_codebooks", 2, 3, chance=0.2) or 1
    options["levels"] = levels
    if draw.yes(0.15):
        options |= {"levels": 5, "codebook_dim": len(levels)}
    options["dim"] = draw.one(len(levels) * books, 5, 8)
    draw.maybe("commitment_loss_weight", 0.0, 1.0)
    draw.maybe("quantization_loss_weight", 0.0, 1.0)
    draw.maybe("keep_num_codebooks_dim", True)
    draw.maybe("optimize_values", False, chance=0.2)
    shape = shape_of(draw, options["dim"], draw.one("image", "sequence", "volume"))
    return Case("LatentQuantize", seed, options, shape, {}, draw.yes(0.1))


CASES_OF = {
    "VectorQuantize": vector_case,
    "ResidualVQ": residual_case,
    "GroupedResidualVQ": grouped_case,
    "FSQ": scalar_case,
    "ResidualFSQ": residual_scalar_case,
    "LFQ": signs_case,
    "SimVQ": linear_case,
    "ResidualLFQ": residual_signs_case,
    "GroupedResidualLFQ": lambda seed: residual_signs_case(seed, "GroupedResidualLFQ"),
    "ResidualSimVQ": residual_linear_case,
    "GroupedResidualFSQ": grouped_scalar_case,
    "LatentQuantize": latent_case,
}
