"""Losses of policy optimization, and the advantages that they take."""
