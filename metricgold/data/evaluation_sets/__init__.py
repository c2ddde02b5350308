"""Public evaluation sets: their official lists, readers and masks, and how they become shards."""
