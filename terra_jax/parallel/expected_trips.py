"""How often a loop is expected to run whose length only the data decide; a note in the program, for those who count.

The note is a name scope: it goes from the traced program into the compiled one and changes nothing of either.
"""

import re
from contextlib import AbstractContextManager

import jax

_NOTE = "expected_trips_"


def expected_trips(count: int) -> AbstractContextManager[None]:
    """A scope in which loops of unknown length are expected to run `count` times."""
    return jax.named_scope(f"{_NOTE}{count}")


def noted_trips(names: str) -> int | None:
    """What was noted in the innermost of the scopes that a program's text gives for an operation, if anything was."""
    noted = re.findall(rf"{_NOTE}(\d+)", names)
    return int(noted[-1]) if noted else None
