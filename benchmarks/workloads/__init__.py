"""Real models with real labelled data to run the command on; each module prepares one."""
