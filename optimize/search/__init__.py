"""Beyond the plan: other options and chains, mixed precision, and session options."""
