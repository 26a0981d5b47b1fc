"""CoPE Lab: Contextual Position Encoding (arXiv 2405.18719) beside the token-based encodings, on the same tasks."""

TYPE_CHECKING = False  # which type checkers take to be true; a command's first milliseconds have no time for typing

if TYPE_CHECKING:
    from cope.functional import cope_attention, relative_attention

__all__ = ["cope_attention", "relative_attention"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import PyTorch only where attention is asked for: commands speak of a typing error, or of --help, without it."""
    if name in __all__:
        from cope import functional

        return getattr(functional, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
