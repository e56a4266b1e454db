"""Ops on hidden states and a vocabulary, without the logits: log-probabilities and their losses."""
