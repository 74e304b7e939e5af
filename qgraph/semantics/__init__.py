"""What an op computes: its shape and its values, in NumPy, with exact integers."""
