"""How `r1train.verify` reads and compares answers: `docs/rewards.md` has the rules.

`clean` writes a text in one way, `syntax` reads mathematics, `units` and `words` what follows a
number, `values` computes, and `compare` decides. Nothing here evaluates text as code, and every
computation is bounded: answers are hostile.
"""
