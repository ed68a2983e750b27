"""The upper wing: the command, windows, whole runs. No chapter imports it."""
