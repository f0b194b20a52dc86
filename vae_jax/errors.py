"""The one exception that the command line turns into a sentence and a non-zero exit code."""


class VaeJaxError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do."""
