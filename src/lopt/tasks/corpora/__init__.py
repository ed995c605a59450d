"""Named collections of tasks, and what was measured on them."""
