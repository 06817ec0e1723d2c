"""The machine at hand: what works on it and what is missing."""
