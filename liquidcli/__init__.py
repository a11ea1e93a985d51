"""liquid: run language models at each token's own depth.

Knows the version and nothing else; every room is imported by the verb that needs it, so that `liquid --help` stays quick.
"""

__version__ = "0.1.0"
