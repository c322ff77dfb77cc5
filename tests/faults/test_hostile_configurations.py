"""Configurations that ask for too much, or for nonsense: refused in one line, in little time and memory.

Those of files have a right digest, as a stranger would give them.
"""

import json

from fault_children import Loaded, attempt, trials
from fault_kinds import MARK, classifier, decoder, of_part, prior, saved, small_model
from fault_runs import WORDS, said_in_a_line

import gmvq
from gmvq import hub
from gmvq.data.sealing import read_record, write_record
from gmvq.models import DiffusionDecoder
from gmvq.networks import Classifier
from gmvq.priors import AbstractPrior

HUGE = 1 << 62
DEEP = json.loads("[" * 500 + "]" * 500)
PARTS = {
    "model": (small_model, gmvq.Autoencoder),
    "prior": (prior, AbstractPrior),
    "decoder": (decoder, DiffusionDecoder),
    "classifier": (classifier, Classifier),
}
FILES = (
    *(
        ("model", f"config.codebook_size={value}")
        for value in (-1, 0, 15, 10**9, HUGE, "1e308", '"16"', "null", "true")
    ),
    *(("model", f"config.width={value}") for value in (0, 9, 10**6, HUGE, "[8]")),
    *(("model", f"config.code_dim={value}") for value in (0, 10**8, HUGE)),
    *(("model", f"config.downsampling={value}") for value in (0, 3, HUGE, "2.5", "null")),
    *(("model", f"config.blocks={value}") for value in (-1, 10**7, HUGE)),
    *(("model", f"config.quantizer={value}") for value in ('"os.system"', '"../../x"', '"__class__"', "[]", '"none"')),
    *(
        ("model", f"config.quantizer_options={value}")
        for value in ("[]", '{"decay": 2}', '{"x": 1}', '{"num_quantizers": 1e9}')
    ),
    *(
        ("model", f"config.modality={value}")
        for value in ("null", "{}", '{"kind": "os"}', '{"kind": "image", "channels": 1e12}')
    ),
    ("model", 'config.modality={"kind": "text", "vocabulary": ["a", "a"]}'),
    ("model", f'config.modality={{"kind": "series", "names": {json.dumps(["x"] * 1000)}}}'),
    *(("model", f"config.network={value}") for value in ('"x\\u001b[31m"', f'"{"x" * 5000}"')),
    ("model", "config=[]"),
    ("model", f"config={json.dumps(DEEP)}"),
    ("model", 'format="gmvq.prior"'),
    ("model", "version=true"),
    ("model", "version=2"),
    ("model", "fingerprint=7"),
    *(
        ("prior", f"config.shape.grid={value}")
        for value in ("[]", "[1099511627776, 1099511627776]", "[-4, 4]", "[1000000]", "4")
    ),
    *(("prior", f"config.shape.codebook_sizes={value}") for value in ("[]", "[4611686018427387904]", "[0]", '["16"]')),
    *(("prior", f"config.options.depth={value}") for value in (0, 10**6)),
    *(("prior", f"config.options.{name}") for name in ("heads=3", 'order="x"', "dropout=7", "width=1000000000")),
    ("prior", 'config.prior="os"'),
    ("prior", "tokenizer=null"),
    *(("decoder", f"config.{name}") for name in ("steps=0", "steps=4611686018427387904", "channels=1e9", "width=-8")),
    *(
        ("classifier", f"config.{name}")
        for name in ("halvings=1000000", "classes=-1", 'signal={"axes": 99}', "signal=null")
    ),
)
"""What is changed in a part's config.json: a path, and its value in JSON."""
TRAIN = ["train", "digits", "--out", "OUT", *WORDS]
COMMANDS = (
    *([*TRAIN, f"--{name}"] for name in ("steps=-1", "steps=1e999", "batch-size=0", "learning-rate=nan", "seed=-1")),
    *([*TRAIN, f"--{name}"] for name in ("width=0", "codebook-size=0", "downsampling=3", "size=-5", "threads=0")),
    *(
        [*TRAIN, f"--{name}"]
        for name in ("held-out-fraction=2", "held-out-fraction=nan", "train-limit=999999", "seed=1e5")
    ),
    *(
        [*TRAIN, f"--seed={1 << 80}"],
        [*TRAIN, "--quantizer=os.system"],
        [*TRAIN, "--device=cuda:99"],
        [*TRAIN, "--device="],
    ),
    *([*TRAIN, f"--quantizer-options={text}"] for text in ("{", "[]", '{"decay": NaN}', '{"x": 1}', "7")),
    *(
        [*TRAIN, "--quantizer-options", "[" * 100_000],
        [*TRAIN, "--data", "/dev/zero"],
        [*TRAIN, "--data", "/proc/self/mem"],
    ),
    *(
        [*TRAIN, "--from", "/"],
        [*TRAIN, "--betas", "2", "2"],
        [*TRAIN, "--precision", "fp8"],
        ["train", "digits", "--out", "/dev/null"],
    ),
    *(["train", "digits", "--out", name, *WORDS] for name in ("a\0b", "x" * 300)),
    *(["sample", "RUN", f"--{name}"] for name in ("n=0", "top-p=nan", "temperature=-1", "top-k=0", "guidance=nan")),
    *(["sample", "RUN", "-n", "2", f"--{name}"] for name in ("label=99", "label=-1", "columns=0", "seed=-1")),
    *(["evaluate", "RUN", f"--{name}"] for name in ("samples=0", "limit=-3", "batch-size=0", "limit=0")),
    *(["tokenize", "RUN", "DATA", "OUT", f"--{name}"] for name in ("part=all", "batch-size=0", "batch-size=-1")),
    *(
        ["tokenize", "RUN", "/dev/zero", "OUT"],
        ["tokenize", "RUN", "DATA", "/proc/x"],
        ["detokenize", "RUN", "RUN", "OUT"],
    ),
    *(
        ["reconstruct", "RUN", "DATA", "DATA"],
        ["complete", "RUN", "0", "OUT", "--mask", "RUN"],
        ["info", "/"],
        ["info", ""],
    ),
    *(["fit-prior", "RUN", f"--{name}"] for name in ("heads=0", "depth=-1", "width=3", "prior=x", "learning-rate=inf")),
)
"""Words of the command line."""


def changed(description, change):
    """The description with one value replaced."""
    path, _, text = change.partition("=")
    *outer, last = path.split(".")
    inner = description
    for name in outer:
        inner = inner[name]
    inner[last] = json.loads(text)
    return description


def test_hostile_configurations_of_files(tmp_path):
    assert len(FILES) + len(COMMANDS) >= 80
    for name, (make, _) in PARTS.items():
        saved(make, hub.CONFIG, tmp_path / name, tokenizer=MARK)

    def one(number):
        name, change = FILES[number]
        path, load = tmp_path / name / hub.CONFIG, of_part(PARTS[name][1])
        former = path.read_bytes()
        try:
            write_record(path, changed(read_record(path), change))
            return attempt(lambda: load(path), Loaded(""), (path.name, str(path.parent)), sealed=True)
        finally:
            path.write_bytes(former)

    failed = [
        f"{FILES[number]}: {trial}"[:900]
        for number, trial in trials(range(len(FILES)), one)
        if trial.outcome != "clean"
    ]
    assert not failed, "\n".join([f"{len(failed)} of {len(FILES)}:", *failed])


def test_hostile_words_of_the_command_line(place, tmp_path):
    names = {"RUN": place / "run", "DATA": place / "data", "OUT": tmp_path / "out"}

    def one(number):
        words = [str(names.get(word, word)) for word in COMMANDS[number]]
        return attempt(lambda: said_in_a_line(words, (1, 2)), Loaded("in a line"), ("",), sealed=True)

    found = list(trials(range(len(COMMANDS)), one))
    failed = [f"{COMMANDS[n]}: {trial}"[:1200] for n, trial in found if trial.outcome != "same"]
    assert not failed, "\n".join([f"{len(failed)} of {len(COMMANDS)}:", *failed])
