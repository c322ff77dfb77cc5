import pytest

from gmvq.training import glossary


@pytest.mark.parametrize(("seconds", "shown"), [(4.26, ("4.3", "s")), (59.4, ("59", "s")), (3599, ("59:59", "min"))])
def test_duration(seconds, shown):
    assert glossary.duration(seconds) == shown


def test_every_explanation_can_be_shown():
    for key, measure in glossary.MEASURES.items():
        assert glossary.measure(key) is measure
        assert glossary.shown(measure, 0.5)
        assert measure.good.format(codes="1", nats="2")[-1:] in (".", "")
