"""The parts of the pages that are made from the code, so that they cannot be older than it."""
