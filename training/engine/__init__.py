"""The training engine: a run directory in, a proved adapter out. No Django in here."""
