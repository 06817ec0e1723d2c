"""Backends load artifacts and run them; `base` holds the contract and each other file one backend."""
