from gmvq.metrics.base import Measure
from gmvq.modalities import MODALITIES
from gmvq.reports import glossary


def test_every_explanation_can_be_shown():
    for key, measure in glossary.MEASURES.items():
        assert glossary.measure(key) is measure
        assert measure.shown(0.5)
        assert measure.good.format(codes="1", nats="2", share="100 %")[-1:] in (".", "")


def test_a_distance_is_explained_by_the_modality_at_hand():
    own = Measure("mse", "Squared error", "kWh²")
    assert glossary.measure("mse", (own,)) is own
    for kind in MODALITIES.values():
        for measure in kind.measures:
            assert glossary.measure(measure.key, kind.measures) is measure


def test_a_key_without_an_explanation_has_its_words_for_a_name():
    assert glossary.measure("some_new_term") == Measure("some_new_term", "Some new term")
    assert glossary.measure("bits_per_furlong").unit == "bits"
