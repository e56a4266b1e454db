"""A regular package: some of the peers install a folder `tests` of their own."""
