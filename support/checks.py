"""What cannot be allocated is refused before it is allocated."""

import os

from support.console import UserError
from support.files import shown

MOST_LAYERS = 1000  # each costs Python objects, however few numbers it has


def check_memory(count, layers, source, remedy="fetch the model again"):
    """Raises UserError for a model that no machine like this can hold.

    Args: count, how many float32 numbers it has; layers, how many layers; source, what says so, a file or flags, for
    the message.
    """
    if layers > MOST_LAYERS:
        raise UserError(f"{source} asks for {shown(layers)} layers, and {MOST_LAYERS} are the limit; {remedy}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * count > memory:
        asked = f"{4 * count / 1e9:,.0f} GB" if count < 10**18 else "far more memory"
        raise UserError(f"{source} asks for {asked}, and this machine has {memory / 1e9:,.0f} GB; {remedy}")
