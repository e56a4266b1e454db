"""What every op stands on: its declaration, dispatch, checks and the compiled libraries."""
