"""Each kind of file that gmvq reads back: how one is made, how it is read, and whether its format has a checksum."""

import gzip
import hashlib
import json
import lzma
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import PIL.Image
import torch
from fault_children import Loaded
from fault_samples import (
    celeba,
    cifar_archive,
    cifar_binary,
    cifar_folder,
    folder_of_pictures,
    labels,
    lines_of_json,
    mnist,
    npy,
    npz,
    parquet,
    picture,
    prose,
    recordings,
    sound,
    sounds_packed,
    table,
    tiff,
    vectors,
    written,
)
from rich.console import Console

import gmvq
from gmvq import hub, recipes, tokenization
from gmvq.commands import info
from gmvq.data import ArrayItems
from gmvq.entropy import EntropyConfig, EntropyModel, fit
from gmvq.modalities import Audio, Data, Image, Series, Text, Vectors
from gmvq.models import DiffusionConfig, DiffusionDecoder
from gmvq.networks import Classifier, ClassifierConfig
from gmvq.priors import AbstractPrior, CodeShape, make_prior
from gmvq.reports.run_page import write_report
from gmvq.stages.tokenizer import read_run
from gmvq.tokenization import TokenFile
from gmvq.training import Training, train
from gmvq.training import checkpoint as checkpoints
from gmvq.training.journal import read_log
from gmvq.training.symptoms import symptoms

QUIET = Console(quiet=True)
STEPS = 4


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        make: Writes all that a load needs into a folder; returns the file that is mutated.
        load: Reads the file back, as gmvq does.
        sealed: The format has a checksum, or gmvq adds one: another content than the written one is silently wrong.
        own: The file is gmvq's: another valid file of its kind in its place is silently wrong, too.
        beside: Names, apart from the file's own, by which an error may name what it is about.
    """

    make: Callable[[Path], Path]
    load: Callable[[Path], Loaded]
    sealed: bool = True
    own: bool = False
    beside: tuple[str, ...] = ()


def digest(*parts) -> str:
    """SHA-256 of tensors, arrays, and whatever JSON can hold."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            array = part.detach().contiguous().numpy()
            found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            found.update(json.dumps(part, sort_keys=True, default=str).encode())
    return found.hexdigest()


def small_data() -> Data:
    """Images of 8x8 pixels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(30, 1, 4, 4, generator=generator)
    images = (torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="bilinear") * 255).round().byte()
    return Data("noise", ArrayItems(images[:22], 2), ArrayItems(images[22:], 2), Image(1))


def small_model() -> gmvq.Autoencoder:
    """A tokenizer of gray images, 2 x 2 pixels a token."""
    torch.manual_seed(0)
    config = gmvq.AutoencoderConfig(modality=Image(1), codebook_size=16, width=8, downsampling=2, blocks=1)
    return gmvq.Autoencoder(config)


def small_training(**changes) -> Training:
    """A few steps."""
    small = {"steps": STEPS, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2, "log_every": 1}
    return Training(**{**small, "evaluate_every": 2, "threads": 1, **changes})


def run_of(folder: Path, *, resume: bool = False) -> Path:
    """Trains in a folder."""
    train(small_model(), small_data(), small_training(), folder, resume=resume, console=QUIET)
    return folder


def of_part(part) -> Callable[[Path], Loaded]:
    """Reads a saved part of a model."""

    def load(path: Path) -> Loaded:
        made = hub.load(path.parent, part)
        mark = hub.tokenizer_of(path.parent, part) if part in (AbstractPrior, DiffusionDecoder) else None
        return Loaded(digest(hub.fingerprint(made), mark, *made.state_dict().values()))

    return load


def saved(part: Callable[[], torch.nn.Module], name: str, folder: Path, tokenizer: str | None = None) -> Path:
    """Saves a part; returns one of its files."""
    torch.manual_seed(0)
    hub.save(part(), folder, tokenizer=tokenizer)
    return folder / name


def prior() -> AbstractPrior:
    """A prior over 4 x 4 tokens."""
    return make_prior("autoregressive", CodeShape((4, 4), (16,)), {"width": 16, "depth": 1, "heads": 2})


def decoder() -> DiffusionDecoder:
    """A diffusion decoder."""
    return DiffusionDecoder(DiffusionConfig(channels=1, dim=4, downsampling=2, width=8, blocks=1))


def classifier() -> Classifier:
    """A judge's classifier."""
    return Classifier(ClassifierConfig(Image(1).signal, 4, width=8, features=8))


def entropy_model() -> EntropyModel:
    """A codec's entropy model, fitted to a few codes."""
    items = [torch.arange(16).reshape(4, 4).roll(shift, 1) for shift in range(4)]
    return fit(EntropyConfig((16,), 2), [None], items)


MARK = "0123456789abcdef" * 4


def tokens(folder: Path) -> Path:
    """Writes the codes of a few images."""
    folder.mkdir(parents=True)
    tokenization.tokenize(small_model(), small_data().train, folder / "codes.safetensors")
    return folder / "codes.safetensors"


def read_tokens(path: Path) -> Loaded:
    """Reads codes as ``gmvq detokenize`` does."""
    file = TokenFile(path)
    file.verify()
    return Loaded(digest(*file.info._replace(names=list(file.info.names), sizes=list(file.info.sizes)), *file))


def of_data(modality, *, many: bool = False) -> Callable[[Path], Loaded]:
    """Reads data from a file (of many, from its folder), each item as training would."""

    def load(path: Path) -> Loaded:
        # an image takes the memory of the size that its file states; the limit by default is for large photographs
        with mock.patch.object(PIL.Image, "MAX_IMAGE_PIXELS", 2**22):
            return loaded(path.parent if many else path)

    def loaded(source: Path) -> Loaded:
        data = modality.load(source, held_out_fraction=0)  # not split, which goes by the bytes of files
        sides = [data.train] if data.train is data.held_out else [data.train, data.held_out]
        parts = []
        for items in sides:
            for index, name in enumerate(items.names):
                item = items[index]
                if not bool(torch.isfinite(data.signal.checked(item[None])).all()) and data.signal.values != "real":
                    raise AssertionError(f"{name} has values that are not finite")
                parts.append(item)
            parts.append(None if items.labels is None else items.labels.tolist())
            parts.append([list(size) for size in items.sizes])
        return Loaded(digest(*parts), tuple(f"{each.path}: {each.reason}" for each in data.skipped))

    return load


def checkpoint(folder: Path) -> Path:
    """The checkpoint of a finished run."""
    return run_of(folder) / checkpoints.FOLDER / checkpoints.FILE


def resumed(path: Path) -> Loaded:
    """Reads a checkpoint, or the one before it; for one of ten contents the run goes on from it to the same bits."""
    run, said = path.parents[1], list[str]()
    found = checkpoints.read_checkpoint(run, said.append)
    if zlib.crc32(path.read_bytes()) % 10 == 0:
        with tempfile.TemporaryDirectory() as scratch:
            copy = shutil.copytree(run, Path(scratch) / "run")
            run_of(copy, resume=True)
            assert digest(*hub.load(copy).state_dict().values()) == digest(*hub.load(run).state_dict().values())
    return Loaded(
        digest(*found._replace(tensors=list(found.tensors), configuration={}), *found.tensors.values()), tuple(said)
    )


def record_of(name: str) -> Callable[[Path], Path]:
    """One of the files of a run that pages and ``gmvq info`` show, and runs are resumed and compared by."""

    def make(folder: Path) -> Path:
        run = recipes.changed(recipes.digits(), steps=3, width=8, blocks=1, batch_size=8, codebook_size=16, log_every=1)
        recipes.run(run, folder, data=small_data(), console=QUIET, report=False)
        return folder / name

    return make


def shown(path: Path) -> Loaded:
    """Prints what ``gmvq info`` does, makes the run's warnings, and for one of fifty contents its page with all curves.

    These files are optional there, so that all contents are shown.
    """
    folder = path.parent
    symptoms(read_log(folder))
    if zlib.crc32(path.read_bytes()) % 50 == 0:
        write_report(folder, hub.load(folder), small_data().held_out)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = info.run(info.Options(folder), "")
    info.show(found, QUIET)
    left_out = [
        str(each.message) for each in said if "left out" in str(each.message) and path.name in str(each.message)
    ]
    return Loaded(digest(found["record"], found["metrics"]), tuple(left_out))


def read_again(path: Path) -> Loaded:
    """Reads the record of a run as its later stages do, and shows it."""
    shown(path)
    return Loaded(digest(read_run(path.parent).described()))


def kinds() -> dict[str, Kind]:
    """All kinds, by name."""
    model, part = of_part(gmvq.Autoencoder), partial
    numbers = Vectors()
    return {
        "weights": Kind(part(saved, small_model, hub.WEIGHTS), model, own=True),
        "configuration": Kind(part(saved, small_model, hub.CONFIG), model, own=True),
        "prior": Kind(part(saved, prior, hub.WEIGHTS, tokenizer=MARK), of_part(AbstractPrior), own=True),
        "prior's configuration": Kind(part(saved, prior, hub.CONFIG, tokenizer=MARK), of_part(AbstractPrior), own=True),
        "decoder": Kind(part(saved, decoder, hub.WEIGHTS, tokenizer=MARK), of_part(DiffusionDecoder), own=True),
        "classifier": Kind(part(saved, classifier, hub.WEIGHTS), of_part(Classifier), own=True),
        "codec": Kind(part(saved, entropy_model, hub.WEIGHTS, tokenizer=MARK), of_part(EntropyModel), own=True),
        "codec's configuration": Kind(
            part(saved, entropy_model, hub.CONFIG, tokenizer=MARK), of_part(EntropyModel), own=True
        ),
        "checkpoint": Kind(checkpoint, resumed, own=True),
        "log": Kind(record_of("log.jsonl"), shown, sealed=False),
        "metrics": Kind(record_of("metrics.json"), shown, own=True),
        "record": Kind(record_of("run.json"), read_again, own=True),
        "tokens": Kind(tokens, read_tokens, own=True),
        "PNG": Kind(written("a.png", part(picture, "PNG")), of_data(Image())),
        "PNG of a folder": Kind(folder_of_pictures, of_data(Image(), many=True)),
        "JPEG": Kind(written("a.jpg", part(picture, "JPEG")), of_data(Image()), sealed=False),
        "TIFF": Kind(written("a.tiff", tiff), of_data(Image()), sealed=False),
        "WAV": Kind(written("a.wav", part(sound, "WAV")), of_data(Audio()), sealed=False),
        "FLAC": Kind(written("a.flac", part(sound, "FLAC")), of_data(Audio())),
        "CSV of vectors": Kind(written("a.csv", table), of_data(numbers), sealed=False),
        "CSV of series": Kind(written("a.csv", table), of_data(Series()), sealed=False),
        "npz": Kind(written("a.npz", npz), of_data(Image())),
        "npy": Kind(written("a.npy", npy), of_data(Image()), sealed=False),
        "Parquet": Kind(written("a.parquet", parquet), of_data(numbers), sealed=False),
        "idx": Kind(part(mnist, packed=False), of_data(Image(), many=True), sealed=False),
        "idx.gz": Kind(part(mnist, packed=True), of_data(Image(), many=True)),
        "CIFAR-10's archive": Kind(cifar_archive, of_data(Image())),
        "CIFAR-10's batch": Kind(cifar_folder, of_data(Image(), many=True), sealed=False),
        "zip of recordings": Kind(part(sounds_packed, form="zip"), of_data(Audio())),
        "tar.gz of recordings": Kind(part(sounds_packed, form="tar.gz"), of_data(Audio())),
        "CIFAR-10's binary batch": Kind(cifar_binary, of_data(Image(), many=True), sealed=False),
        "CelebA's zip": Kind(celeba, of_data(Image(face_side=32))),
        "labels": Kind(labels, of_data(Image(), many=True), sealed=False),
        "WebP": Kind(written("a.webp", part(picture, "WEBP")), of_data(Image()), sealed=False),
        "MP3": Kind(written("a.mp3", part(sound, "MP3")), of_data(Audio()), sealed=False),
        "OGG": Kind(written("a.ogg", part(sound, "OGG")), of_data(Audio()), sealed=False),
        "npy of recordings": Kind(written("a.npy", recordings), of_data(Audio(rate=8000)), sealed=False),
        "npy of vectors": Kind(written("a.npy", vectors), of_data(numbers), sealed=False),
        "CSV.xz of vectors": Kind(written("a.csv.xz", lambda: lzma.compress(table())), of_data(numbers)),
        "JSON lines": Kind(written("a.jsonl", lines_of_json), of_data(Text()), sealed=False),
        "text": Kind(written("a.txt", prose), of_data(Text()), sealed=False),
        "text.gz": Kind(written("a.txt.gz", lambda: gzip.compress(prose(), mtime=0)), of_data(Text())),
    }


KINDS = kinds()


def copied(folder: Path, to: Path) -> Path:
    """A copy of a folder."""
    return shutil.copytree(folder, to)
