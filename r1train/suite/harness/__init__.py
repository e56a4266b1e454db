"""Tasks of lm-evaluation-harness on a model: what `r1train eval MODEL --harness TASK` does."""
