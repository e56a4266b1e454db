"""Records of a run made readable: tables, plots, the terminal."""
