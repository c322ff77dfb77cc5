"""Stages of a run: one common procedure, and a module for each part of a run's folder."""

from gmvq.stages.classifier import classifier_of, exemplars, learned_classifier
from gmvq.stages.codec import CodecRun, fit_codec
from gmvq.stages.data import DataConfig, data_of_run, load_data
from gmvq.stages.decoder import DecoderRun, fit_decoder
from gmvq.stages.prior import PriorRun, fit_prior
from gmvq.stages.tokenizer import Run, TokenizerStage, fitted, load_features, metrics_of, read_run

__all__ = [
    "CodecRun",
    "DataConfig",
    "DecoderRun",
    "PriorRun",
    "Run",
    "TokenizerStage",
    "classifier_of",
    "data_of_run",
    "exemplars",
    "fit_codec",
    "fit_decoder",
    "fit_prior",
    "fitted",
    "learned_classifier",
    "load_data",
    "load_features",
    "metrics_of",
    "read_run",
]
