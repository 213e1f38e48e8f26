"""What a model costs, how fast it is, what it attends to."""
