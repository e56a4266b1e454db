"""The model: loaded whole, run on packed batches, and what its routers did."""
