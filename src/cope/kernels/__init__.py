"""Implementations of CoPE attention under one contract, with the same numbers: see :func:`cope.functional.cope_attention`."""
