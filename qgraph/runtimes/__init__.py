"""What executes a graph: the NumPy reference and the engines, behind one interface."""
