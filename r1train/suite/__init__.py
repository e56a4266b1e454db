"""Published benchmarks on a model: what `r1train eval MODEL --suite r1` does.

A benchmark is a TOML file in `benchmarks`: what is asked, how an answer is found in what the model
writes, and how it is scored. Its questions are read from files that the user has (`formats`).
"""
