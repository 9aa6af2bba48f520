"""Which chains are worth trying, and their artefacts: every step once, kept between runs."""
