import support.interrupt  # noqa: F401, from here on Ctrl-C prints one line
