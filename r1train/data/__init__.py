"""Problems and prompts: where they come from, and how they become text and tokens."""
