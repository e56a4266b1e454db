"""What changes the weights: losses over batches of completions, and the optimizer."""
