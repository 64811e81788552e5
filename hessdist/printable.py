"""Text of unknown origin in a form that a terminal only shows."""

from __future__ import annotations


def printable(text: object, keep: str = "") -> str:
    r"""Return a text in which nothing controls a terminal or hides other text.

    Args:
        text: The text, such as a name from a result file.
        keep: Characters that stay as they are.

    Returns:
        The text with escapes such as \x1b or \u202e for control characters, line breaks,
        invisible and unassigned characters, changes of the writing direction and lone surrogates.
    """
    words = str(text)
    if words.isascii() and words.isprintable():
        return words
    return "".join(one if one in keep or one.isprintable() else _escaped(one) for one in words)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
