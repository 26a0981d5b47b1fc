"""CoPE Lab: Contextual Position Encoding (arXiv 2405.18719) beside the token-based encodings, on the same tasks."""

from cope.functional import cope_attention, relative_attention

__all__ = ["cope_attention", "relative_attention"]
__version__ = "0.1.0"
