"""The commands: what each takes, calls and prints, and how it exits."""
