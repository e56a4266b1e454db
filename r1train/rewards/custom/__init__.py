"""Reward functions of users, called in processes that a completion can be allowed to break."""
