"""Whether tensors are what they seem."""

from gmvq.checks import can_look_at, is_transformed

__all__ = ["can_look_at", "is_transformed"]
