"""Places where workers run. ``local`` is this machine."""
