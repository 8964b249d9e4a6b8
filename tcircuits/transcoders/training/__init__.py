"""Training of dictionaries: `init_state` and `train_step` are pure; `train` runs them over a corpus, and can resume."""
