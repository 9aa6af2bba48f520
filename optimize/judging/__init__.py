"""Measures variants side by side, and judges them: who is kept, who is not, and why."""
