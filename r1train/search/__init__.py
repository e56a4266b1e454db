"""Steps of solutions, what they are worth, and trees of them."""
