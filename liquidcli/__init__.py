"""liquid: run language models at each token's own depth.

Knows the version and nothing else; the verb that needs a room imports it, so that `liquid --help` stays quick.
"""

__version__ = "0.1.0"
