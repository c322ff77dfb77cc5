"""The drop-in classes against the library whose interface they have, with random options.

``GMVQ_FAULTS=full`` takes 2,000 draws of each class. ``GMVQ_FAULTS_SEED`` is the seed of the first draw; a failure says
which seed gives it again, as the first.
"""

import math
import types
import warnings

import pytest
from compat_cases_of_others import CASES_OF
from compat_differences import DIFFERENCES, REFUSALS, warms
from compat_fuzzing import CASES, SEED, Comparison, UnexplainedError

from gmvq.compat import vector_quantize_pytorch as ours
from gmvq.compat.codebooks import codebook_state

theirs = pytest.importorskip("vector_quantize_pytorch")


def put(dropin, module):
    dropin.load_state_dict(module.state_dict())


def states(module):
    """The codebooks that learn."""
    for name in ("rvqs", "fns"):
        if hasattr(module, name):
            return [state for part in getattr(module, name) for state in states(part)]
    if hasattr(module, "get_vq"):
        return [module.get_vq(level)._codebook for level in range(module.num_levels)]
    if hasattr(module, "layers") and hasattr(module.layers[0], "_codebook"):
        return [layer._codebook for layer in module.layers]
    if isinstance(module, ours.ResidualVQ | ours.GroupedResidualVQ):
        module.update()
        members = [member for member in module.quantizer.modules() if type(member).__name__ == "PeerQuantizer"]
        places = len(module.options.codebook_sizes) // len(members) if isinstance(module, ours.ResidualVQ) else 1
        return [codebook_state([member]) for member in members * places]
    return [module._codebook] if hasattr(module, "_codebook") else []


def constant(dropin):
    """What the loss of signs has more than theirs, so that it is never negative."""
    signs = next((module for module in dropin.modules() if isinstance(module, ours.LFQ)), None)
    if signs is None or signs.options.experimental_softplus_entropy_loss:
        return 0.0
    options = signs.options
    return options.entropy_loss_weight * options.diversity_gamma * math.log(options.size)


@pytest.mark.parametrize("kind", CASES_OF)
def test_what_differs_has_a_name(kind, capsys):
    comparison = Comparison(theirs, ours, REFUSALS, DIFFERENCES, warms, put, states, constant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of what it is built on
        for seed in range(SEED, SEED + CASES):
            comparison.run(CASES_OF[kind](seed))
    with capsys.disabled():
        print(f"\n{kind}: {dict(comparison.outcomes)}")
    assert comparison.outcomes["equal"] + comparison.outcomes["equal but for a difference with a name"] > CASES // 5
    assert comparison.outcomes["a latent between two codes"] <= max(1, CASES // 200)


class Louder(ours.SimVQ):
    """A class with a loss that is 1 % too high."""

    def forward(self, x):
        values, codes, loss = super().forward(x)
        return values, codes, 1.01 * loss


def test_a_fault_is_found_and_says_how_to_find_it_again():
    library = types.SimpleNamespace(SimVQ=Louder)
    comparison = Comparison(theirs, library, REFUSALS, DIFFERENCES, warms, put, states, constant)
    again = r"GMVQ_FAULTS_SEED=12 pytest 'tests/faults/test_compat_fuzz.py::test_what_differs_has_a_name\[SimVQ\]'"
    with pytest.raises(UnexplainedError, match=rf"loss 0: differ by (.|\n)*SimVQ\(.*'dim': (.|\n)*{again}"):
        comparison.run(CASES_OF["SimVQ"](12))
    assert not comparison.outcomes
