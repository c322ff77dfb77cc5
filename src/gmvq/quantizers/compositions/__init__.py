"""Quantizers made of quantizers: several at their places, or one in a wrapper."""
