"""Greater-than over two-digit years: prompts, the probability difference, an MLP that keeps few of its parts."""
