"""RASP programs compiled to transformers by tracr (Lindner et al. 2023, arXiv 2301.05062), and their known circuits."""
