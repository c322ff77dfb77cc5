import re
from pathlib import Path

import pytest

from gmvq.priors import PRIORS, AutoregressiveConfig, CodeShape, MaskedConfig, described, from_description, make_prior
from gmvq.stages import PriorRun

ROOT = Path(__file__).parents[2]
SMALL = {"width": 16, "depth": 1, "heads": 2}


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_is_made_by_name_and_from_its_description(name):
    options = {} if PRIORS[name].config is None else SMALL
    made = make_prior(name, CodeShape((), (4,)), options)
    assert type(made) is PRIORS[name].prior
    again = from_description(described(made))
    assert described(again) == described(made)
    assert PRIORS[name].title


def test_unknown_names_fail_with_the_list():
    names = ", ".join(PRIORS)
    for make in (lambda name: make_prior(name, CodeShape((2,), (4,))), PriorRun):
        with pytest.raises(ValueError, match=f"'prior' must be one of {names}, got 'transformer'"):
            make("transformer")
    for config in (AutoregressiveConfig, MaskedConfig):
        with pytest.raises(ValueError, match="'order' must be one of raster, columns, snake, spiral, coarse"):
            config(order="random")
    with pytest.raises(ValueError, match="'weighting' must be one of mean, bound"):
        MaskedConfig(weighting="sum")
    with pytest.raises(ValueError, match="'options' must be fields of the masked prior"):
        make_prior("masked", CodeShape((2,), (4,)), {"layers": 3})
    with pytest.raises(ValueError, match="A prior that counts has no options"):
        make_prior("n-gram", CodeShape((2,), (4,)), SMALL)


def test_the_documentation_lists_all_priors():
    table = (ROOT / "docs/generation.md").read_text().split("| `--prior` |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert [name for row in rows for name in re.findall("`([^`]+)`", row)] == list(PRIORS)
    assert all(f"`{name}`" in (ROOT / "README.md").read_text() for name in PRIORS)
