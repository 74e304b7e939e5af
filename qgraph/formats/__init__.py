"""File formats: one module per format; only they know bytes."""
