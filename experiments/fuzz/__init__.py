"""Parts of `experiments.fuzz_loaders`: what is loaded, how files are damaged, where they are loaded."""
