"""Names of tensors, keys and files in messages."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 3) -> str:
    """List some names.

    Args:
        names: The names.
        most: The largest number of names to list.

    Returns:
        The first names, and the number of further ones.
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def shown(name: str, longest: int = 160) -> str:
    """Make a name printable, and shorten it.

    Args:
        name: The name.
        longest: The largest number of characters.

    Returns:
        The name, its representation in ASCII, or its beginning.
    """
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= longest else f"{name[:longest]}..."
