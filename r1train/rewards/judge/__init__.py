"""Judgements of a language model that is asked over HTTP."""
