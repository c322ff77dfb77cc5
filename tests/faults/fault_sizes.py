"""How much the suite of faults tries, and from which seed: both are given by the environment.

``GMVQ_FAULTS=full`` tries all (``make test-faults``), anything else a small part (``make test``).
``GMVQ_FAULTS_SEED=7`` draws other mutations than seed 0; the seed is printed at the start and in each failure.
"""

import os

FULL = os.environ.get("GMVQ_FAULTS") == "full"
SEED = int(os.environ.get("GMVQ_FAULTS_SEED", "0"))


def size(small, full):
    """How many are tried."""
    return full if FULL else small


def again(what):
    """How a failure is seen again."""
    return f"GMVQ_FAULTS{'=full' if FULL else ''} GMVQ_FAULTS_SEED={SEED}: {what}"
