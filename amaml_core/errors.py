"""The one exception for input that the caller can mend."""


class InputError(ValueError):
    """Bad input, told in one sentence that names the culprit and the remedy."""
