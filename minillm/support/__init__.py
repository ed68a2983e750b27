"""The lower wing: files, formats, devices, logs. Imports no chapter."""
