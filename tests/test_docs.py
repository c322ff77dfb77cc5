"""The pages name every public class, every link leads somewhere, and what they say can be run."""

import importlib
import importlib.util
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from torch import nn

import gmvq
from gmvq.__main__ import main
from gmvq.bibliography import citation
from gmvq.commands import VERBS
from gmvq.commands.train import settings_type
from gmvq.modalities import MODALITIES
from gmvq.priors import PRIORS
from gmvq.quantizers import QUANTIZERS, AbstractBottleneck, AbstractEstimator, ChannelFirst
from gmvq.recipes import RECIPES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
API = DOCS / "api"
PAGES = [path for pattern in ("*.md", "api/*.rst") for path in sorted(DOCS.glob(pattern))]
ROOMS = (
    "gmvq",
    *(f"gmvq.{room}" for room in ("quantizers", "models", "losses", "metrics", "data", "modalities", "priors")),
    *(f"gmvq.{room}" for room in ("training", "tokenization", "reports", "stages", "experiments", "codec", "entropy")),
)
"""Packages whose public classes and functions are all documented."""


def name_of(path: Path) -> str:
    return str(path.relative_to(DOCS))


def objects(text: str) -> list[object]:
    """What the autodoc directives of a page document."""
    found = []
    for kind, name, options in re.findall(r"^\.\. auto(\w+):: (\S+)\n((?: +:.*\n)*)", text, flags=re.MULTILINE):
        if kind == "module":
            module = importlib.import_module(name)
            if ":no-members:" not in options:
                members = [value for key, value in vars(module).items() if not key.startswith("_")]
                found += [value for value in members if getattr(value, "__module__", None) == name]
        else:
            module, _, attribute = name.rpartition(".")
            found.append(getattr(importlib.import_module(module), attribute))
    return found


def public(room: str) -> list[object]:
    module = importlib.import_module(room)
    values = [getattr(module, name) for name in module.__all__]
    return [value for value in values if inspect.isclass(value) or inspect.isfunction(value)]


CLASSES = [value for value in public("gmvq") if inspect.isclass(value)]
OF_QUANTIZERS = [found for found in CLASSES if found.__module__.startswith("gmvq.quantizers.")]
BOTTLENECKS = [found for found in OF_QUANTIZERS if issubclass(found, AbstractBottleneck) and found is not ChannelFirst]
"""Those with an equation and a source: a layout has neither."""
MODULES = [found for found in OF_QUANTIZERS if issubclass(found, nn.Module)]
ESTIMATORS = [found for found in OF_QUANTIZERS if issubclass(found, AbstractEstimator)]
named = {"ids": lambda found: found.__name__}


def cells(page: str, header: str, place: int = 0) -> list[str]:
    """The cells of a column of the table of a page whose header begins with some words."""
    table = f"\n{(DOCS / page).read_text()}".split(f"\n| {header} |", 1)[1].split("\n\n")[0]
    return [line.strip("|").split("|")[place].strip() for line in table.splitlines()[2:]]


def names_in(text: str) -> list[str]:
    return re.findall(r"`([\w-]+)`", text)


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_is_on_one_page(room):
    documented = [found for path in API.glob("*.rst") for found in objects(path.read_text())]
    assert [value for value in public(room) if documented.count(value) != 1] == []


@pytest.mark.parametrize("found", MODULES + ESTIMATORS, **named)
def test_every_quantizer_and_estimator_has_a_page_of_its_own(found):
    page = (API / f"{found.__name__}.rst").read_text()
    assert page.startswith(f"{found.__name__}\n{'=' * len(found.__name__)}\n")
    assert objects(page) == [found]


@pytest.mark.parametrize("path", sorted(API.glob("[A-Z]*.rst")), ids=lambda path: path.stem)
def test_every_page_of_a_class_has_its_class(path):
    assert path.stem in gmvq.__all__


@pytest.mark.parametrize("found", [found for found in OF_QUANTIZERS if not issubclass(found, Exception)], **named)
def test_every_class_of_the_quantizers_has_an_example(found):
    assert "\n    Example:\n        >>> " in (found.__doc__ or "")


@pytest.mark.parametrize("found", MODULES + ESTIMATORS, **named)
def test_quantizers_and_estimators_say_their_shape(found):
    assert "\n    Shape:\n" in (found.__doc__ or "")


@pytest.mark.parametrize("found", BOTTLENECKS + ESTIMATORS, **named)
def test_quantizers_and_estimators_say_their_source(found):
    assert "\n    References:\n" in (found.__doc__ or "")
    assert citation(found)


@pytest.mark.parametrize("found", BOTTLENECKS, **named)
def test_every_quantizer_has_an_equation(found):
    assert ".. math::" in (found.__doc__ or "") + (inspect.getmodule(found).__doc__ or "")


def test_every_quantizer_and_estimator_is_compared():
    page = (DOCS / "which-quantizer.md").read_text()
    assert [found.__name__ for found in MODULES + ESTIMATORS if f"api/{found.__name__}.rst)" not in page] == []


def test_every_page_is_in_the_contents():
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), flags=re.DOTALL)
    entries = [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]
    names = {str(path.relative_to(DOCS).with_suffix("")) for path in PAGES}
    assert len(set(entries)) == len(entries)
    assert set(entries) == names - {"index"}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    text = path.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) if path.suffix == ".md" else []
    targets += [f"{target}.rst" for target in re.findall(r":doc:`([^`/]+)`", text)]
    for target in targets:
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        page = path.parent / file if file else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_quick_start_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "quick-start.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["images"].shape == (1, 3, 32, 32)
    assert "gmvq_yan2024" in capsys.readouterr().out


def test_the_modality_of_the_page_is_found_by_every_verb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", (DOCS / "modalities.md").read_text(), flags=re.DOTALL):
            exec(block, names)
        genes = (f">{place}\n{'GATTACA' * (3 + place % 5)}\n{'ACGT' * place}\n" for place in range(20))
        (tmp_path / "some.fasta").write_text("".join(genes))
        size = "--width 16 --depth 1 --heads 2"
        for command in (
            "train folder --data some.fasta --steps 2 --width 8 --batch-size 4",
            "evaluate runs/folder",
            "tokenize runs/folder some.fasta codes.safetensors",
            "detokenize runs/folder codes.safetensors decoded.fasta",
            f"fit-prior runs/folder --prior masked --steps 2 --batch-size 4 {size}",
            "sample runs/folder -n 1 --out drawn.fasta",
            "complete runs/folder 0 completed",
        ):
            assert main(command.split()) == 0, command
        assert (tmp_path / "decoded.fasta").read_text().count(">") == 20
        assert (tmp_path / "drawn.fasta").read_text().startswith(">0\n")
    finally:
        MODALITIES.pop("genes", None)


def test_tables_list_what_the_code_lists():
    assert sorted(cells("modalities.md", "`--data` holds", 1)) == sorted(f"`{kind}`" for kind in MODALITIES)
    assert cells("quick-start.md", "Recipe") == [f"`{name}`" for name in RECIPES]
    assert [name for cell in cells("generation.md", "`--prior`") for name in names_in(cell)] == list(PRIORS)
    assert cells("which-quantizer.md", "`--quantizer`") == [f"`{name}`" for name in QUANTIZERS]
    assert cells("which-quantizer.md", "`--quantizer`", 1) == [preset.title for preset in QUANTIZERS.values()]


def test_the_page_of_modalities_has_their_settings_and_bundled_data():
    page = (DOCS / "modalities.md").read_text()
    kinds = [MODALITIES[kind] for cell in cells("modalities.md", "`--data` holds", 1) for kind in names_in(cell)]
    bundled = cells("modalities.md", "`--data` holds", 7)
    assert [names_in(cell) for cell in bundled] == [list(kind.bundled) for kind in kinds]
    tables = page.split("\n| Setting |")[1:]
    rows = [re.findall(r"^\| (`.+?) \|", table.split("\n\n")[0], flags=re.MULTILINE) for table in tables]
    said = [{name for row in table for name in names_in(row)} for table in rows]
    assert said == [{field.name for field in fields(kind)} for kind in kinds]
    named = set(re.findall(r"^\| `\w+` \| `--([\w-]+)`", page, flags=re.MULTILINE))
    assert named == {field.name.replace("_", "-") for field in fields(settings_type())}


def test_every_verb_has_its_section():
    page = (API / "command-line.rst").read_text()
    assert re.findall(r"^\.\. command-help:: ([\w-]+)$", page, flags=re.MULTILINE) == list(VERBS)


def test_equations_need_no_network():
    pytest.importorskip("sphinx")
    if importlib.util.find_spec("sphinx-mathjax-offline") is None:
        pytest.skip("of the extra docs")
    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    assert conf.mathjax_path in [Path(path).name for path in conf.html_static_path]
    assert conf.mathjax().stat().st_size > 1 << 20


def test_the_laws_are_those_of_the_tests():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests/quantizers").rglob("test_*.py"))
    laws = re.findall(r"`(test_\w+)` \|$", (DOCS / "laws.md").read_text(), flags=re.MULTILINE)
    assert [law for law in laws if f"def {law}(" not in tests] == []
    own = (ROOT / "tests/quantizers/test_laws.py").read_text()
    general = re.findall(r"^@(?:quantizers|bottlenecks|members\(.*\))\n(?:@.*\n)*def (test_\w+)\(", own, re.MULTILINE)
    assert [law for law in general if law not in laws] == []


def test_the_exceptions_are_those_of_the_tests():
    spec = importlib.util.spec_from_file_location("exceptions", ROOT / "tests/quantizers/exceptions.py")
    exceptions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(exceptions)
    rows = []
    for law, members in exceptions.EXCEPTIONS.items():
        for reason in dict.fromkeys(members.values()):
            names = ", ".join(f"`{member}`" for member in members if members[member] == reason)
            rows.append(f"| {law} | {names} | {reason} |")
    page = (DOCS / "laws.md").read_text()
    (block,) = re.findall(r"<!-- exceptions: .*? -->\n(.*)<!-- /exceptions -->", page, re.DOTALL)
    assert block.splitlines()[2:] == rows, "docs/laws.md wants these rows:\n" + "\n".join(rows)
