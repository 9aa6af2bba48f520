"""Processes and folders of a run that go with it, however it ends."""
