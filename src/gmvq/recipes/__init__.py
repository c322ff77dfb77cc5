"""Whole runs as Python functions: what to learn from, the model, and how to train it. A variant edits one.

::

    photos() --replace--> Run --run(out)--> out/{model.safetensors, metrics.json, report.html, ...}

    def photos_small() -> Run:
        return replace(photos(), training=replace(photos().training, steps=200))
"""

from gmvq.recipes.catalogue import (
    BUNDLED_DATA,
    LEARNED,
    NAMES,
    DataConfig,
    Run,
    celeba,
    changed,
    cifar10,
    digits,
    fashion_mnist,
    fitted,
    folder,
    load_data,
    make,
    photos,
    template,
)
from gmvq.recipes.classifying import classifier_of, exemplars, learned_classifier
from gmvq.recipes.decoding import DECODER, DecoderRun, fit_decoder
from gmvq.recipes.layout import METRICS, RECORD, REPORT, read_json
from gmvq.recipes.priors import FOLDER, PriorRun, fit_prior
from gmvq.recipes.running import check_folder, figures_of, finished, load_features, read_run, run

__all__ = [
    "BUNDLED_DATA",
    "DECODER",
    "FOLDER",
    "LEARNED",
    "METRICS",
    "NAMES",
    "RECORD",
    "REPORT",
    "DataConfig",
    "DecoderRun",
    "PriorRun",
    "Run",
    "celeba",
    "changed",
    "check_folder",
    "cifar10",
    "classifier_of",
    "digits",
    "exemplars",
    "fashion_mnist",
    "figures_of",
    "finished",
    "fit_decoder",
    "fit_prior",
    "fitted",
    "folder",
    "learned_classifier",
    "load_data",
    "load_features",
    "make",
    "photos",
    "read_json",
    "read_run",
    "run",
    "template",
]
