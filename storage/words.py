"""How much text there is."""


def count_words(text: str) -> int:
    """The number of words; in a script without spaces, an estimate by its bytes."""
    return max(len(text.split()), len(text.encode()) // 8)
