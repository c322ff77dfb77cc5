"""Entropy coding of codes: integers from end to end, the same bytes on any machine.

::

    codes (*grid[, levels]) --EntropyModel.encode--> bytes --decode--> codes
                                     ^
                             fit(codes of items)

:mod:`gmvq.entropy.definition` defines the bytes, in plain Python; ``kernels/entropy.cpp`` makes the same ones fast.
"""

from gmvq.entropy.definition import DamagedCodesError
from gmvq.entropy.fitting import fit
from gmvq.entropy.model import EntropyConfig, EntropyModel

__all__ = ["DamagedCodesError", "EntropyConfig", "EntropyModel", "fit"]
