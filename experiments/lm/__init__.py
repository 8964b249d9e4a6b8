"""The small language models of the experiments: corpus, grammars, tokenizer, trainer, measures."""
