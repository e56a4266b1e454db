"""Rewards: what a completion is worth, judged where a hostile one can do no harm."""
