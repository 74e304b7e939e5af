"""What the outputs of a model mean: a task per file, and how a frozen model is judged by each."""
