"""The command `unime`."""
