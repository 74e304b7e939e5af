"""Images and arrays: where they are read from, and how they are made ready."""
