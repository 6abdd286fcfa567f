"""edgekit turns a small language model into something that runs, fast and coherent, on a cheap board."""

__version__ = "0.1.0"
