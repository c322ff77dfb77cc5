"""Random options of the drop-in classes that return something else than values, codes and a loss, and all classes."""

import torch
from compat_cases import CASES_OF as CASES_OF_QUANTIZERS
from compat_cases import Draw, shape_of, signs_case
from compat_fuzzing import Case
from torch import nn


def perturbation_case(seed):
    draw = Draw(seed)
    options = draw.options
    levels = [draw.one(2, 3, 4, 5, 8, 1) if draw.yes(0.2) else draw.one(3, 4, 5, 8) for _ in range(draw.one(1, 2, 3))]
    options["levels"] = draw.one(levels, tuple(levels))
    draw.maybe("projection_has_bias", False, True)
    draw.maybe("act_name", "tanh", "sigmoid", "normal", "laplace", "cauchy", chance=0.7)
    draw.maybe("act_name", "relu", chance=0.02)
    draw.maybe("quantize_rate", 0.0, 0.3, 0.7, 1.0, chance=0.6)
    draw.maybe("quantize_rate", 1.5, chance=0.02)
    draw.maybe("need_inv_act", True, chance=0.4)
    draw.maybe("vector_norm", "none", "var", "kurt", "var_tanh", "var_sigmoid", "var_laplace", chance=0.6)
    draw.maybe("vector_norm", "mean", chance=0.02)
    dim = draw.maybe("dim", 5, 8, chance=0.4) or len(levels)
    first = draw.maybe("channel_first", True, chance=0.4)
    shape = shape_of(draw, dim, draw.one("image", "volume", "sequence") if first else None)
    if not first and draw.yes(0.15):
        shape = draw.one((2, 3, 4, dim), (1, dim), (dim,))
    call = {"eps": draw.one(1e-6, 1e-3)} if draw.yes(0.15) else {}
    return Case("FSP", seed, options, shape, call, draw.yes(0.1))


def mapper_case(seed):
    draw = Draw(seed)
    bits = draw.maybe("bits", 1, 2, 4, 6, chance=0.9) or 1
    draw.maybe("kl_loss_threshold", 0.0, 0.2, 2.0, chance=0.4)
    draw.maybe("deterministic_on_eval", True, False, chance=0.4)
    call = {}
    for name, values, chance in (
        ("temperature", (0.1, 0.7, 3.0), 0.4),
        ("straight_through", (True, False, None), 0.4),
        ("calc_aux_loss", (True, False, None), 0.4),
        ("deterministic", (True, False, None), 0.4),
        ("return_indices", (True, False), 0.7),
        ("reduce_aux_kl_loss", (True, False), 0.4),
    ):
        if draw.yes(chance):
            call[name] = draw.one(*values)
    shape = draw.one((2, 9, bits), (11, bits), (bits,), (2, 3, 4, bits))
    return Case("BinaryMapper", seed, draw.options, shape, call, len(shape) > 1 and draw.yes(0.1))


class Labels(nn.Module):
    """A quantizer that gives labels, or their cross-entropy, with values in front of them."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x, **call):
        answer = self.quantizer(x, **call)
        return (answer, None) if answer.is_floating_point() else (answer.float(), answer)


def random_projection(library, options):
    return Labels(library.RandomProjectionQuantizer(**options.pop("others"), **options))


def random_projection_case(seed):
    draw = Draw(seed)
    draw.maybe("decay", 0.5, 0.9)
    draw.maybe("eps", 1e-3, chance=0.02)
    draw.maybe("freeze_codebook", True)
    draw.maybe("kmeans_init", True, chance=0.04)
    draw.maybe("kmeans_iters", 10, 5, chance=0.04)
    draw.maybe("threshold_ema_dead_code", 2)
    draw.maybe("commitment_weight", 0.25, 0.0)
    draw.maybe("commitment_use_cross_entropy_loss", True)
    draw.maybe("stochastic_sample_codes", True)
    draw.maybe("sample_codebook_temp", 0.1, 0.0)
    draw.maybe("rotation_trick", True, False, chance=0.3)
    draw.maybe("straight_through", True, chance=0.05)
    draw.maybe("layernorm_after_project_in", True)
    draw.maybe("route_gradients_to_input", False)
    draw.maybe("return_zeros_for_masked_padding", False)
    draw.maybe("learnable_codebook", True, chance=0.03)
    options = {"others": draw.options}  # apart: the differences of a codebook that learns are none here
    draw.options = options
    options |= {"dim": draw.one(4, 6, 12), "codebook_size": draw.one(5, 16), "codebook_dim": draw.one(3, 4, 16)}
    books = draw.maybe("num_codebooks", 1, 2, 3, chance=0.5) or 1
    draw.maybe("norm", False, True, chance=0.3)
    shape = (draw.one(2, 3), 9, options["dim"])
    call = {}
    if draw.yes(0.4):
        labels = torch.Generator().manual_seed(seed)
        several = () if books == 1 else (books,)
        call["indices"] = torch.randint(-1, options["codebook_size"], (*shape[:2], *several), generator=labels)
    return Case("RandomProjectionQuantizer", seed, options, shape, call, draw.yes(0.1), make=random_projection)


def grids(draw, axes):
    """Scales of a hierarchy, coarse to fine; a few are not."""
    sides = sorted(draw.one(1, 2, 3, 4) for _ in range(draw.one(1, 2, 3)))
    scales = [(side,) * (axes - 1) + (side + 1,) for side in sides] if draw.yes(0.3) else sides
    return [*scales, 1] if draw.yes(0.03) else scales


def hierarchical_level(draw):
    draw.maybe("decay", 0.8, 0.9)  # faster, theirs tells its smoothing of counts after levels that share a codebook
    draw.maybe("commitment_weight", 0.25, 0.0, 2.0)
    draw.maybe("rotation_trick", True, False, chance=0.4)
    draw.maybe("kmeans_init", False, chance=0.8)
    draw.maybe("kmeans_iters", 10, 5, chance=0.04)
    draw.maybe("threshold_ema_dead_code", 0, 0, 0, 1e-9, 1, chance=0.85)
    draw.maybe("stochastic_sample_codes", True)
    draw.maybe("sample_codebook_temp", 0.5, 0.0)
    draw.maybe("orthogonal_reg_weight", 1.0, chance=0.02)
    draw.maybe("orthogonal_reg_max_codes", 4, 100)
    draw.maybe("orthogonal_reg_active_codes_only", True)
    draw.maybe("sync_codebook", True, False, chance=0.03)
    draw.maybe("quant_resi", 0.0, -0.3, 1.0, chance=0.3)
    draw.maybe("share_quant_resi", 0, 1, 2, -1, 5, chance=0.5)
    draw.maybe("nested_dropout", 0.5, 1.0, chance=0.3)
    draw.maybe("nested_dropout_min_levels", 1, 2, 3, chance=0.3)


def hierarchical_case(seed):
    draw = Draw(seed)
    options = draw.options
    axes = draw.one(1, 1, 2, 2, 3)
    scales = grids(draw, axes)
    options |= {"dim": draw.one(4, 6), "codebook_size": draw.one(5, 12), "scales": draw.one(scales, tuple(scales))}
    options |= {1: {}, 2: {"accept_image_fmap": True}, 3: {"accept_3d_fmap": True}}[axes]
    draw.maybe("accept_3d_fmap", True, chance=0.02)
    draw.maybe("shared_codebook", True, False, chance=0.6)
    if draw.yes(0.1):
        options["codebook_size"] = tuple(draw.one(5, 12) for _ in scales)
    hierarchical_level(draw)
    places = {1: draw.one((9,), (5,)), 2: draw.one((3, 4), (4, 4)), 3: draw.one((2, 3, 2), (3, 3, 3))}[axes]
    batch, dim = draw.one(2, 3), options["dim"]
    last = draw.maybe("channel_first", True, False, chance=0.4) is False
    shape = (batch, *places, dim) if last else (batch, dim, *places)
    call = {}
    if draw.yes(0.25):
        mask = torch.rand(batch, *places, generator=torch.Generator().manual_seed(seed)) > 0.4
        mask[:, 0] = True
        call = {"lens": mask.sum(-1)} if draw.yes(0.4 if axes == 1 else 0.04) else {"mask": mask}
    for name, value in (("sample_codebook_temp", 0.5), ("return_cutoff", True), ("indices", torch.zeros(1))):
        if draw.yes(0.02 if name == "indices" else 0.15):
            call[name] = value
    return Case("HierarchicalVQ", seed, options, shape, call, draw.yes(0.1))


class Search(nn.Module):
    """An autoencoder of bits; in evaluation with what its search gives."""

    def __init__(self, autoencoder, bits, first, step):
        super().__init__()
        self.autoencoder, self.bits, self.first, self.step = autoencoder, bits, first, step

    def forward(self, x, **call):
        answer = tuple(self.autoencoder(x, **call))
        return answer if self.training else (*answer, self.found(x))

    def found(self, x):
        search, is_sign = self.autoencoder, self.step.get("is_sign", False)
        shape = (2, self.bits) if self.first["pairs"] else (self.bits,)
        population = search.init_random_population(9, shape, is_sign=is_sign)
        ways = {
            "bits": lambda: search.encode(x),
            "signs": lambda: search.encode(x, return_signs=True),
            "decoded": lambda: search.decode_bits(population),
            "first": lambda: search.init_population_from_data(x, **self.first["data"], is_sign=is_sign),
            "selected": lambda: search.tournament_selection(population, torch.arange(9.0), self.first["size"]),
            "last": lambda: self.last(shape, population),
        }
        return {name: tried(way) for name, way in ways.items()}

    def last(self, shape, population):
        """The last population, with the best fitness beside each individual."""
        start = {"pop_bits": population} if self.first["starts"] else {"shape": shape}
        *_, last = self.autoencoder.evolve(fitness, **start, **self.step)
        return torch.cat([last.pop_bits.flatten(1), torch.full((len(last.pop_bits), 1), last.best_fitness)], 1)


def fitness(decoded, _):
    """Another number for each: how the two libraries take equal ones depends on rounding."""
    flat = decoded.flatten(1)
    return -(flat - torch.linspace(0.1, 0.7, flat.shape[1])).square().sum(-1)


def tried(way):
    torch.manual_seed(3)
    try:
        return way()
    except Exception as error:  # theirs of some shapes
        return error


def search_arguments(draw):
    """Arguments of a search: of what comes before it, and of each step."""
    options, draw.options = draw.options, {"generations": 2}
    first = {"pairs": draw.yes(0.2), "starts": draw.yes(0.3), "size": draw.one(None, 1, 4)}
    first["data"] = draw.one({}, {"pop_size": 4}, {"mutation_rate": 0.0}, {"pop_size": 40, "mutation_rate": 0.4})
    draw.maybe("pop_size", 5, 12, chance=0.3)
    draw.maybe("mutation_rate", 0.0, 0.3, chance=0.3)
    draw.maybe("tournament_size", 1, 3, chance=0.3)
    draw.maybe("elitism_count", 0, 2, chance=0.3)
    draw.maybe("is_sign", True, False, chance=0.3)
    draw.maybe("batch_size", 1, 4, chance=0.3)
    draw.maybe("return_best_decoded", True, chance=0.3)
    if draw.yes(0.1):
        del draw.options["generations"]
    step, draw.options = draw.options, options
    return first, step


def evolution_case(seed):
    case, draw = signs_case(seed), Draw(seed)
    last = len(case.shape) < 4 and not case.options.get("channel_first")
    features = case.shape[-1 if last else 1]
    draw.maybe("pop_size", 3, 20, 1, chance=0.3)
    draw.maybe("mutation_rate", 0.0, 0.3, chance=0.3)
    draw.maybe("tournament_size", 1, 4, chance=0.3)
    draw.maybe("elitism_count", 0, 2, chance=0.3)
    draw.maybe("generations", 3, chance=0.3)
    first, step = search_arguments(draw)
    own, has_quantizer = draw.options, draw.yes(0.3)

    def make(library, options):
        # the entropy at a temperature of 0.01 multiplies what rounding leaves in an encoder that has learned
        ways = nn.Tanh(), nn.Linear(features, features) if last else nn.Tanh()
        options = {name: value for name, value in options.items() if name not in {*own, "pairs"}}
        options = {"lfq": library.LFQ(**options)} if has_quantizer else options
        search = library.EvoLFQ(*ways, **options, **own)
        return Search(search, search.lfq.codebook_dim * search.lfq.num_codebooks, first, step)

    case.call.pop("return_loss_breakdown", None)  # an error in theirs
    options = case.options | own | {"pairs": first["pairs"]}
    return Case("EvoLFQ", seed, options, case.shape, case.call, case.unlike, "LFQ", make)


class Half(nn.Module):
    """A linear module without parameters, so that values that differ give others no other gradient."""

    def forward(self, x):
        return x / 2


def sequential_case(seed):
    draw = Draw(seed)
    kind = draw.one(*CASES_OF_QUANTIZERS, "FSP", "HierarchicalVQ")
    case = CASES_OF[kind](seed)
    before, after = draw.one([], [nn.PReLU], [nn.Tanh, nn.PReLU]), draw.one([], [Half], [Half, nn.Identity])
    number = draw.one(0, 2) if draw.yes(0.03) else 1
    if after:
        case.call.pop("return_loss_breakdown", None)  # with which LFQ returns a pair, and not values first

    def make(library, options):
        quantizers = [getattr(library, kind)(**options) for _ in range(number)]
        return library.Sequential(*[way() for way in before], *quantizers, *[way() for way in after])

    return Case("Sequential", seed, case.options, case.shape, case.call, case.unlike, kind, make)


CASES_OF = {
    **CASES_OF_QUANTIZERS,
    "FSP": perturbation_case,
    "BinaryMapper": mapper_case,
    "RandomProjectionQuantizer": random_projection_case,
    "HierarchicalVQ": hierarchical_case,
    "EvoLFQ": evolution_case,
    "Sequential": sequential_case,
}
