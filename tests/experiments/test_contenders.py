import math

import pytest

from gmvq.experiments import CONTENDERS, GROUPS, PROTOCOLS, STUDIES, chosen, grid
from gmvq.experiments.protocols import LATENT_DIM
from gmvq.quantizers import QUANTIZERS, make_bottleneck

SHORT = PROTOCOLS["cifar10-8x8-k1024-short"]


@pytest.mark.parametrize("name", [name for name in CONTENDERS if "codebook_size=16384" not in name])
def test_each_contender_can_be_built_under_a_protocol(name):
    run = CONTENDERS[name].run(SHORT.run, seed=3)
    model = run.model
    bottleneck = make_bottleneck(model.quantizer, model.code_dim, model.codebook_size, model.quantizer_options)
    assert run.training.seed == 3
    # codes of several scales have three quarters of the bits each, for there are four thirds as many
    if name == "hierarchical":
        assert bottleneck.codebook_size == round(model.codebook_size**0.75)
    else:
        assert math.prod(bottleneck.codebook_sizes) == model.codebook_size
    assert "codebook_size=" in name or model.codebook_size == 1024


def test_every_quantizer_takes_part():
    assert {CONTENDERS[name].quantizer for name in GROUPS["all"]} == {*QUANTIZERS} - {"none"}


def test_the_default_is_what_the_constructor_gives():
    run = CONTENDERS["gaussian-mixture"].run(SHORT.run, seed=0)
    made = make_bottleneck("gaussian-mixture", LATENT_DIM, 1024, run.model.quantizer_options)
    plain = type(made)(LATENT_DIM, 1024)
    assert repr(made) == repr(plain)
    assert made.codebook_dim == plain.codebook_dim


def test_a_study_changes_one_thing_and_holds_the_default():
    for study in STUDIES.values():
        own = [point for point in study.points if point.contender in GROUPS["all"]]
        assert own, study.name
        assert len({point.label for point in study.points}) == len(study.points)
        for point in study.points:
            contender = CONTENDERS[point.contender]
            base = CONTENDERS[point.contender.partition(":")[0]]
            assert dict(contender.options) == {**base.options, **point.options}
            assert contender.changes == point.changes
        assert study.protocol in PROTOCOLS


def test_words_stand_for_contenders_once_each():
    names = [one.name for one in chosen(["vector", "all", "study:noise"])]
    assert names[0] == "vector"
    assert len(names) == len(set(names))
    assert set(GROUPS["all"]) < set(names)
    with pytest.raises(ValueError, match=r"'quantizers' under a protocol must be of gaussian-mixture.*got 'voronoi'"):
        chosen(["voronoi"])
    with pytest.raises(ValueError, match="at least one"):
        chosen([])


def test_the_grid_varies_training_and_features_and_nothing_else():
    run = PROTOCOLS["cifar10-8x8-k1024-grid"].run
    for base in grid.FIELD:
        places = list(grid.settings(base))
        assert len(places) == 9 + (len(grid.CODE_DIMS) if base in grid.OWN_CODE_DIMS else 0)
        for place in places:
            one = CONTENDERS[place.name(base)]
            assert dict(one.options) == {**CONTENDERS[base].options, **place.options}
            training = one.run(run, seed=0).training
            assert training.steps * training.batch_size == grid.IMAGES
            assert training.warmup_steps == training.steps // grid.WARM_UP
    assert len(GROUPS["grid"]) == 9 * len(grid.FIELD) + 2 * len(grid.OWN_CODE_DIMS) + 1
