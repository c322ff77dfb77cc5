"""The law of all loaders: a name that they do not know may change which code is meant, so it is refused by name."""

import pytest
import torch
from torch import nn

from gmvq.compat import taming, vqtorch
from gmvq.compat import vector_quantize_pytorch as ours

CODES = torch.arange(32.0).reshape(8, 4)

STATES = {
    "taming": (taming.from_state_dict, {"embedding.weight": CODES}),
    "taming-averages": (
        taming.from_state_dict,
        {"embedding.weight": CODES, "embedding.cluster_size": torch.ones(8), "embedding.embed_avg": CODES},
    ),
    "taming-gumbel": (
        taming.from_state_dict,
        {"embed.weight": CODES, "proj.weight": CODES[..., None, None], "proj.bias": torch.zeros(8)},
    ),
    "vqtorch": (vqtorch.from_state_dict, {"codebook.weight": CODES, "_counts": torch.ones(8)}),
}

MODULES = {
    "VectorQuantize": {"dim": 8, "codebook_size": 16},
    "ResidualVQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
    "GroupedResidualVQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2, "groups": 2},
    "FSQ": {"levels": [5, 5], "dim": 8},
    "ResidualFSQ": {"levels": [5, 5], "num_quantizers": 2, "dim": 8},
    "LFQ": {"dim": 8, "codebook_size": 16},
    "SimVQ": {"dim": 8, "codebook_size": 16},
    "RandomProjectionQuantizer": {"dim": 8, "codebook_size": 16, "codebook_dim": 4},
    "FSP": {"levels": [5, 5], "dim": 8},
    "ResidualLFQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
    "GroupedResidualLFQ": {"dim": 8, "groups": 2, "codebook_size": 4, "num_quantizers": 2},
    "GroupedResidualFSQ": {"dim": 8, "groups": 2, "levels": [5, 5], "num_quantizers": 2},
    "ResidualSimVQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
    "LatentQuantize": {"levels": [5, 5], "dim": 8},
    "HierarchicalVQ": {"dim": 8, "codebook_size": 16, "scales": (1, 2)},
}

UNKNOWN = ["used", "codebook_used", "norm_layer.weight", "embedding.scale", "something"]


KNOWN = {"taming": {"used", "codebook_used"}, "taming-averages": {"used"}, "taming-gumbel": {"used"}, "vqtorch": set()}


@pytest.mark.parametrize("prefix", ["", "quantize."])
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in STATES for name in UNKNOWN if name not in KNOWN[kind]]
)
def test_states_have_no_unknown_names(kind, prefix, name):
    load, state = STATES[kind]
    state = {prefix + key: tensor for key, tensor in state.items()} | {"encoder.weight": torch.ones(1)}
    if not prefix:
        del state["encoder.weight"]
    load(state, prefix=prefix)
    with pytest.raises(ValueError, match=f"'state_dict' must have no names below .* got '{prefix}{name}'"):
        load(state | {f"{prefix}{name}": torch.ones(3)}, prefix=prefix)


@pytest.mark.parametrize("name", [*UNKNOWN, "layers.5._codebook.embed"])
@pytest.mark.parametrize("kind", MODULES)
def test_modules_have_no_unknown_names(kind, name):
    theirs = pytest.importorskip("vector_quantize_pytorch")
    state = nn.ModuleDict({"vq": getattr(theirs, kind)(**MODULES[kind])}).state_dict()
    mine = nn.ModuleDict({"vq": getattr(ours, kind)(**MODULES[kind])})
    mine.load_state_dict(dict(state))
    with pytest.raises(RuntimeError, match=rf"Unexpected key\(s\) in state_dict: \"vq.{name}\""):
        mine.load_state_dict(state | {f"vq.{name}": torch.ones(3)})


@pytest.mark.parametrize(
    ("kind", "theirs_has", "ours_has"),
    [
        ("VectorQuantize", {"heads": 2, "separate_codebook_per_head": True}, {"heads": 2}),
        ("VectorQuantize", {"heads": 4, "separate_codebook_per_head": True}, {"heads": 2}),
        ("VectorQuantize", {"heads": 2}, {"heads": 2, "separate_codebook_per_head": True}),
        ("LFQ", {"codebook_size": 256, "dim": None}, {"dim": None}),
    ],
)
def test_modules_have_as_many_codebooks_and_bits(kind, theirs_has, ours_has):
    library = pytest.importorskip("vector_quantize_pytorch")
    options = MODULES[kind] | ({"codebook_dim": 4} if kind == "VectorQuantize" else {})
    state = getattr(library, kind)(**options | theirs_has).state_dict()
    # all but the codebooks fit, so that nothing else is in the way
    mine = getattr(ours, kind)(**options | ours_has)
    state = {name: tensor for name, tensor in state.items() if "project" not in name}
    with pytest.raises(ValueError, match=r"must have . (codebooks|bits), got"):
        mine.load_state_dict(state)
