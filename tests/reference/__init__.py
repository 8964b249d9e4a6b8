"""NumPy float64 oracles, written from the definitions: no JAX, no autodiff, nothing imported from the package.

`model` runs a decoder, `dictionary` encodes what its MLPs read, `attribution` pushes every source alone through the
frozen linear network (forward, where the package pulls targets back), `graph` holds influence, pruning and scores
with dense matrices and full sorts, `builders` makes tiny random cases.
"""
