"""Sources of parts: found wherever they hide, known to the bibliography, and told once."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from torch import nn

import gmvq.priors
import gmvq.quantizers
from gmvq.bibliography import citation, entries
from gmvq.models import Autoencoder, AutoencoderConfig
from gmvq.quantizers import (
    ALBO,
    AbstractBottleneck,
    AbstractEstimator,
    Affine,
    GaussianBottleneck,
    GaussianMixtureQuantizer,
    GumbelSoftmax,
    Orthogonal,
    Rotation,
    StraightThrough,
    VectorQuantizer,
)

SOURCE = Path(gmvq.quantizers.__file__).parents[1]
FIELDS = {"title", "author", "year", "url"}


def classes() -> Iterator[type]:
    """Every class of the quantizers' and the priors' rooms that says its sources, whoever wrote it."""
    for room in (gmvq.quantizers, gmvq.priors):
        for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            for value in vars(importlib.import_module(info.name)).values():
                if isinstance(value, type) and value.__module__ == info.name and hasattr(value, "citations"):
                    yield value


CLASSES = sorted(classes(), key=lambda found: found.__name__)


def keys_of(text: str) -> list[str]:
    return re.findall(r"^@\w+\{(.+),$", text, flags=re.MULTILINE)


def test_the_discovery_finds_members_estimators_and_parts():
    assert {GaussianMixtureQuantizer, StraightThrough, GumbelSoftmax, Affine} <= set(CLASSES)


@pytest.mark.parametrize("found", CLASSES, ids=lambda found: found.__name__)
def test_every_key_in_use_is_in_the_bibliography(found):
    assert isinstance(found.citations, tuple)
    assert set(found.citations) <= set(entries())
    assert len(set(found.citations)) == len(found.citations)


@pytest.mark.parametrize("found", CLASSES, ids=lambda found: found.__name__)
def test_what_a_class_cites_is_in_its_docstring(found):
    for key in found.citations:
        (url,) = re.findall(r"\burl = \{(.+)\}", entries()[key])
        assert url in (found.__doc__ or ""), f"{found.__name__} cites {key}, but its References do not name {url}"


@pytest.mark.parametrize("found", CLASSES, ids=lambda found: found.__name__)
def test_what_the_docstring_names_is_in_the_bibliography(found):
    known = "\n".join(entries().values())
    for url in re.findall(r"https://(?:arxiv\.org/abs|doi\.org)/[^\s,;)]+", found.__doc__ or ""):
        assert url.rstrip(".") in known, f"{found.__name__} names {url}"


def test_every_entry_is_used():
    sources = "\n".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "bibliography.py")
    assert [key for key in entries() if f'"{key}"' not in sources] == []


@pytest.mark.parametrize("key", entries())
def test_an_entry_is_whole(key):
    entry = entries()[key]
    found = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", entry, flags=re.MULTILINE))
    assert entry.startswith("@")
    assert entry.endswith("\n}")
    assert entry.count("{") == entry.count("}")
    assert set(found) >= FIELDS
    assert ("journal" in found) != ("booktitle" in found)
    assert re.fullmatch(r"(19|20)\d\d", found["year"])
    assert entry.isascii()  # BibTeX itself knows no other letters
    if "eprint" in found:
        assert found["url"] == f"https://arxiv.org/abs/{found['eprint']}"
        assert found["archivePrefix"] == "arXiv"
    # the surname of the first author is in the key, as far as it is ASCII
    surname = re.sub(r"[^a-z]", "", re.sub(r"\{\\.(\w)\}", r"\1", found["author"].split(",")[0].lower()))
    assert re.fullmatch(r"(?:\w+_)?([a-z]+)\d{4}", key)[1] in surname


def test_no_paper_stands_twice():
    urls = re.findall(r"url = \{(.+)\}", "\n".join(entries().values()))
    assert len(set(urls)) == len(urls) == len(entries())


def test_a_class_an_estimator_and_a_module():
    assert keys_of(citation(GumbelSoftmax)) == ["gumbel_jang2016"]
    assert keys_of(citation(Rotation())) == ["rotation_fifty2024"]
    assert keys_of(citation(VectorQuantizer(4, 8)))[0] == "vqvae_oord2017"
    assert citation(Rotation).startswith("@inproceedings{rotation_fifty2024,\n  title = {Restructuring")


def test_parts_of_parts_are_found_once_in_order_of_appearance():
    first = VectorQuantizer(4, 8, decay=None, estimator=Rotation(), parts=[Affine(), Orthogonal()])
    second = VectorQuantizer(4, 8, estimator=Rotation())
    keys = keys_of(citation(nn.Sequential(nn.Linear(4, 4), first, second, GaussianBottleneck(4))))
    assert len(set(keys)) == len(keys)
    assert {"rotation_fifty2024", "huh2023", "orthogonal_shin2021", "vae_kingma2013"} <= set(keys)
    assert keys.index("vqvae_oord2017") < keys.index("rotation_fifty2024") < keys.index("vae_kingma2013")


def test_a_whole_model():
    keys = keys_of(citation(Autoencoder(AutoencoderConfig(width=8))))
    assert keys[0] == "gmvq_yan2024"
    assert "ste_bengio2013" in keys


def test_collections_and_fields_of_parts_are_searched():
    @dataclass(frozen=True)
    class Wrapped:
        objective: ALBO
        estimators: tuple[AbstractEstimator, ...]

    module = nn.Module()
    module.parts = {"one": Wrapped(ALBO(), (Rotation(), StraightThrough()))}
    module.itself = [module]
    keys = keys_of(citation(module))
    assert keys[-2:] == ["rotation_fifty2024", "ste_bengio2013"]


@pytest.mark.parametrize("part", [nn.Linear(2, 2), nn.Linear, 3, "vqvae_oord2017", None])
def test_what_has_no_source_gets_a_reason(part):
    with pytest.raises(TypeError, match="'part' must be a part of gmvq"):
        citation(part)


def test_a_part_of_ones_own_may_have_no_source_but_no_unknown_one():
    class Own(AbstractEstimator):
        def __call__(self, latents, values):
            return values

    assert citation(Own) == citation(AbstractBottleneck) == ""

    class Unknown(Own):
        citations: ClassVar[tuple[str, ...]] = ("nobody1900",)

    with pytest.raises(KeyError, match="nobody1900"):
        citation(Unknown())
