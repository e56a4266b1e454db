"""The peers' own tests, run against our forms of what they test: ``make test-peers``."""
