"""The page of a case study."""
