"""Small transformers that compute a known function: their problems, their training, and what is known of them."""
