"""Training tasks: one for each kind of model."""

from gmvq.training.tasks.base import AbstractTask, Model, Outcome
from gmvq.training.tasks.classifiers import ClassifierTask, accuracy_of
from gmvq.training.tasks.decoders import DiffusionTask
from gmvq.training.tasks.priors import PriorTask
from gmvq.training.tasks.tokenizers import AdversarialTask, AutoencoderTask, Drawing, check_sides

__all__ = [
    "AbstractTask",
    "AdversarialTask",
    "AutoencoderTask",
    "ClassifierTask",
    "DiffusionTask",
    "Drawing",
    "Model",
    "Outcome",
    "PriorTask",
    "accuracy_of",
    "check_sides",
]
