"""How a pack is trained: the base in PyTorch, text, stages, the judge of what they made. `train` knows their order.

Nothing is imported here: `options` and `data` do without PyTorch, the rest needs it.
"""
