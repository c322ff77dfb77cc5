"""Checks whether values of tensors can be read, and whether torch transforms them."""

from gmvq.checks import can_look_at, is_transformed

__all__ = ["can_look_at", "is_transformed"]
