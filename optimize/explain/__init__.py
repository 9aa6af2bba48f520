"""Why a variant is not faster, and which layers cost its accuracy: from evidence, in sentences."""
