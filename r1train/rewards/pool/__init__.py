"""Verifier processes for hostile answers: `pool` runs them, `worker` is what runs in them."""
