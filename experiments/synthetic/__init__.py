"""Activations whose true features are known, and how well a dictionary recovers them."""
