"""Ops of a mixture of experts: routing, sorting and the products of the experts."""
