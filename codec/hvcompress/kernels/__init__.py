"""Faster ways to the same bits, each beside the plain torch expression that it must equal."""
