"""Recordings of noise, and what was read of them."""

import numpy as np
import soundfile


def noise(length, channels=1, seed=0, scale=0.1):
    return (np.random.default_rng(seed).standard_normal((length, channels)) * scale).astype(np.float32)


def write(path, samples, rate=8000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def everything(data):
    sides = [data.train] if data.train is data.held_out else [data.train, data.held_out]
    return {name: item for side in sides for name, item in zip(side.names, side, strict=True)}


def reasons(data):
    return {skipped.path.name: skipped.reason for skipped in data.skipped}
