"""Pages for people: one self-contained HTML file each, which asks no network for anything."""
