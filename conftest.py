"""Leaves out the doctests of modules whose extra is not installed."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["src/gmvq/kernels/triton_*.py"]
