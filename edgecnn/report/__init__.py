"""Results for people: text tables, and plots as PNG."""
