"""Each kind of file that gmvq reads back: how one is made, how it is read, and whether its format has a checksum."""

import csv
import gzip
import hashlib
import io
import json
import lzma
import pickle
import shutil
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import tifffile
import torch
from fault_children import Loaded
from PIL import Image as Picture
from rich.console import Console

import gmvq
from gmvq import hub, recipes, tokenization
from gmvq.commands import info
from gmvq.data import ArrayItems
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
        # not split, which goes by the bytes of files
        data = modality.load(path.parent if many else path, held_out_fraction=0)
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


def pixels(*shape: int) -> np.ndarray:
    """Smooth values, 0 to 255."""
    rows = np.add.outer(np.arange(shape[-2]) * 3, np.arange(shape[-1]) * 2)
    first = 5 * np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (np.broadcast_to(rows, shape) + first).astype(np.uint8)


def written(name: str, data: Callable[[], bytes]) -> Callable[[Path], Path]:
    """Makes a file of some bytes, in a folder of its own."""

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / name).write_bytes(data())
        return folder / name

    return make


def picture(form: str, **options) -> bytes:
    """A color picture of 24 x 20 pixels."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 32, (20, 24, 3)).astype(np.uint8)
    Picture.fromarray(pixels(3, 20, 24).transpose(1, 2, 0) // 2 + noise).save(buffer, form, **options)
    return buffer.getvalue()


def tiff() -> bytes:
    """A picture in strips."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels(1, 40, 24)[0], rowsperstrip=8)
    return buffer.getvalue()


def sound(form: str, pitch: float = 0.15) -> bytes:
    """Half a second of a tone."""
    buffer = io.BytesIO()
    subtype = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(form, "PCM_16")
    soundfile.write(buffer, 0.5 * np.sin(np.arange(4000) * pitch), 8000, format=form, subtype=subtype)
    return buffer.getvalue()


def table(rows: int = 60) -> bytes:
    """A table of numbers with a header."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["x", "y", "label"])
    for row in np.random.default_rng(0).normal(size=(rows, 2)).round(4):
        writer.writerow([*row, int(row[0] > 0)])
    return text.getvalue().encode()


def vectors() -> bytes:
    """Rows of numbers."""
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).normal(size=(40, 3)))
    return buffer.getvalue()


def npz() -> bytes:
    """Images and labels."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=pixels(12, 8, 8), labels=np.arange(12) % 3)
    return buffer.getvalue()


def npy() -> bytes:
    """Images."""
    buffer = io.BytesIO()
    np.save(buffer, pixels(12, 8, 8))
    return buffer.getvalue()


def parquet() -> bytes:
    """A table of numbers, in pages with checksums."""
    import pyarrow
    from pyarrow import parquet as files

    values = np.random.default_rng(0).normal(size=(60, 2))
    made = pyarrow.table({"x": values[:, 0], "y": values[:, 1], "label": (values[:, 0] > 0).astype(int)})
    buffer = pyarrow.BufferOutputStream()
    files.write_table(made, buffer, write_page_checksum=True)
    return buffer.getvalue().to_pybytes()


def celeba(folder: Path) -> Path:
    """A zip of faces."""
    folder.mkdir(parents=True)
    path = folder / "celeba_89x109.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1, 7):
            buffer = io.BytesIO()
            Picture.fromarray(pixels(3, 109, 89).transpose(1, 2, 0) // number).save(buffer, "JPEG")
            archive.writestr(f"{number:06d}.jpg", buffer.getvalue())
    return path


def labels(folder: Path) -> Path:
    """The table of labels of a folder of pictures."""
    folder_of_pictures(folder)
    (folder / "labels.csv").write_text("file,label\na.png,cat\nb.png,dog\nc.png,cat\nd.png,dog\n")
    return folder / "labels.csv"


def recordings() -> bytes:
    """Recordings in an array."""
    buffer = io.BytesIO()
    np.save(buffer, 0.5 * np.sin(np.outer(np.arange(1, 7), np.arange(300)) / 9).astype(np.float32))
    return buffer.getvalue()


def lines_of_json() -> bytes:
    """Labelled texts."""
    lines = [{"text": text, "label": len(text) % 2} for text in prose().decode().splitlines()]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def idx(array: np.ndarray) -> bytes:
    """An idx file of bytes."""
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def mnist(folder: Path, packed: bool) -> Path:
    """Images and labels of both sides."""
    folder.mkdir(parents=True)
    for side, count in (("train", 20), ("t10k", 6)):
        classes = np.arange(count, dtype=np.uint8) % 4
        for name, array in (("images-idx3", pixels(count, 8, 8)), ("labels-idx1", classes)):
            data = idx(array)
            path = folder / f"{side}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return folder / f"train-images-idx3-ubyte{'.gz' if packed else ''}"


def cifar_batch(number: int) -> bytes:
    """A batch of CIFAR-10 as Python 2 and NumPy pickled it."""
    rows = pixels(4, 3, 32, 32).reshape(4, -1) + np.uint8(number)
    return pickle.dumps({b"data": rows, b"labels": [number, 1, 2, 3]}, protocol=2)


def cifar_archive(folder: Path) -> Path:
    """The official archive, in small."""
    folder.mkdir(parents=True)
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            data = cifar_batch(number)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def cifar_folder(folder: Path) -> Path:
    """The batches themselves, of which one is mutated."""
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(cifar_batch(number))
    return folder / "data_batch_2"


def cifar_binary(folder: Path) -> Path:
    """The binary batches."""
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        rows = pixels(4, 3, 32, 32).reshape(4, -1) + np.uint8(number)
        (folder / name).write_bytes(np.concatenate([np.arange(4, dtype=np.uint8)[:, None], rows], 1).tobytes())
    return folder / "data_batch_2.bin"


def sounds_packed(folder: Path, form: str) -> Path:
    """An archive of recordings."""
    folder.mkdir(parents=True)
    path = folder / f"sounds.{form}"
    names = [f"{label}/{index}.wav" for label in ("high", "low") for index in range(2)]
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for index, name in enumerate(names):
                archive.writestr(name, sound("WAV", 0.1 + 0.1 * index))
        return path
    with tarfile.open(path, "w:gz") as archive:
        for index, name in enumerate(names):
            data = sound("WAV", 0.1 + 0.1 * index)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def folder_of_pictures(folder: Path) -> Path:
    """Four pictures, of which one is mutated."""
    folder.mkdir(parents=True)
    for name in "abcd":
        (folder / f"{name}.png").write_bytes(picture("PNG"))
    return folder / "b.png"


def prose() -> bytes:
    """A few lines, not only of ASCII."""
    colors = ("red", "blue", "süße", "€ 20", "😀")
    return "".join(f"the {color} {animal} sleeps\n" for color in colors for animal in ("cat", "dog", "fox")).encode()


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
