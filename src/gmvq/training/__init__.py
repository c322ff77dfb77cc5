"""Training: fits a model to data and writes a run's folder.

``train(model, data, training, out)`` writes weights, log and checkpoints there.
"""

from gmvq.training.config import Training
from gmvq.training.interrupts import Interrupted
from gmvq.training.loop import TrainingResult
from gmvq.training.monitoring import NonFiniteLossError
from gmvq.training.ranks import LostProcessError
from gmvq.training.trainer import averaged_model, train

__all__ = [
    "Interrupted",
    "LostProcessError",
    "NonFiniteLossError",
    "Training",
    "TrainingResult",
    "averaged_model",
    "train",
]
