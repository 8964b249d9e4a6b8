"""Makes `checkpoint/`: a small checkpoint, to be read by the tests of every later release.

python tests/golden/make_checkpoint.py
"""

from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp

from tcircuits import checkpoint

if __name__ == "__main__":
    tree = {"left": jnp.arange(6.0).reshape(2, 3), "right": {"a": jnp.ones(4, jnp.int32)}}
    about = {"written_by": f"orbax-checkpoint {version('orbax-checkpoint')}"}
    path = Path(__file__).parent / "checkpoint"
    checkpoint.save(path, tree, format_name="test.format", version=3, about=about)
    (path / checkpoint.COMPLETE).write_text("written\n")  # its name is what counts; it held the path on this machine
